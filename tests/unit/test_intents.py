"""What the journal's records say: written and read again they are the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from exaifs.cache.entries import Entry
from exaifs.cache.intents import (
    Intent,
    Mark,
    Move,
    Patch,
    Put,
    Remove,
    Unmark,
    from_record,
    keys_of,
    to_record,
)
from exaifs.model import Ino, Kind, Posix

names = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20)
values = st.dictionaries(st.just("user.k") | st.just("user.ü"), st.binary(max_size=20), max_size=2)
optional = st.none() | st.integers(0, 2**62)
owners = st.none() | st.integers(0, 2**32 - 2)  # -1 is nobody: chown(2)
write_ids = st.lists(st.text("0123456789abcdef", min_size=1, max_size=8), max_size=3).map(tuple)


@st.composite
def posix(draw: st.DrawFn, kind: Kind) -> Posix:
    """Return attributes of a file of some kind."""
    return Posix(draw(st.none() | st.integers(0, 0o7777)), draw(owners), draw(owners), draw(optional), kind)


@st.composite
def entries(draw: st.DrawFn, kinds: tuple[Kind, ...] = ("file", "symlink", "dir")) -> Entry:
    """Return what the index may hold."""
    kind = draw(st.sampled_from(kinds))
    name = draw(names)
    return Entry(
        parent=draw(st.sampled_from(["", "d/", "d/é/"])),
        name=draw(st.just(name) | st.just(name + "\udcff")),  # a name that is not UTF-8
        component=name,
        kind=kind,
        ino=Ino(draw(st.integers(2, 2**40))),
        pending=draw(st.booleans()),
        marker=draw(st.booleans()),
        version=draw(st.text(max_size=8)),
        size_bytes=draw(st.integers(0, 2**40)),
        etag=draw(st.sampled_from(["", '"1"'])),
        sha256=draw(st.none() | st.just("ab" * 32)),
        file_id=draw(st.none() | st.just("id")),
        updated_ns=draw(st.integers(0, 2**62)),
        posix=draw(posix(kind)),
        xattrs=draw(values),
        provider_file_ids=draw(st.just({}) | st.just({"openai": {"id": "file-1"}})),
    )


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    """Return anything that may wait."""
    match draw(st.sampled_from([Put, Remove, Move, Mark, Unmark, Patch])):
        case kind if kind is Put:
            return Put(
                draw(entries(("file", "symlink"))),
                "0a.data",
                draw(st.integers(0, 2**40)),
                draw(st.none() | st.just("cd" * 32)),
                draw(write_ids),
                draw(st.integers(0, 2**62)),
                draw(st.booleans()),
            )
        case kind if kind is Remove:
            return Remove(draw(entries(("file", "symlink"))), draw(write_ids))
        case kind if kind is Move:
            entry = draw(entries())
            source = "x/" if entry.is_dir else "x"
            replaced = None if entry.is_dir else draw(st.none() | entries(("file",)))
            return Move(source, entry, replaced, draw(write_ids))
        case kind if kind is Mark:
            return Mark(draw(entries(("dir",))), draw(st.booleans()))
        case kind if kind is Unmark:
            return Unmark(draw(entries(("dir",))))
    entry = draw(entries())
    changed = draw(st.none() | posix(entry.kind))
    return Patch(entry, changed, draw(values), tuple(draw(st.lists(st.just("user.old"), max_size=1))))


@given(intent=intents())
def test_a_record_is_read_as_it_was_written(intent: Intent) -> None:
    """Through JSON, with names that are not UTF-8, and every attribute."""
    assert from_record(json.loads(json.dumps(to_record(intent)))) == intent


@given(intent=intents())
def test_an_intent_is_about_keys(intent: Intent) -> None:
    """Of a directory's rename they are prefixes; of its attributes and its making the marker's key."""
    keys = keys_of(intent)
    assert len(keys) == (2 if isinstance(intent, Move) else 1)
    if isinstance(intent, Move):
        assert all(key.endswith("/") for key in keys) == intent.entry.is_dir
    else:
        assert not any(key.endswith("/") for key in keys)


@pytest.mark.parametrize(
    ("what", "value"),
    [("op", "shred"), ("staged", "../../etc/passwd"), ("staged", ""), ("entry", {}), ("size_bytes", "x")],
)
def test_what_is_not_understood_is_refused(what: str, value: object) -> None:
    """Another version wrote it, or somebody by hand: no file outside `staging/` is ever named."""
    entry = Entry(parent="", name="f", component="f", kind="file", ino=Ino(2))
    record = {**to_record(Put(entry, "0a.data", 1)), what: value}
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_record(record)
