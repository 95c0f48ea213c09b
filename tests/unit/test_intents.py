"""What the journal's records say: written and read again they are the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from exaifs.cache.names.entries import Entry
from exaifs.cache.unsent.intents import (
    Intent,
    Mark,
    Move,
    Patch,
    Put,
    Remove,
    Unmark,
    from_record,
    joined,
    keys_of,
    outdates,
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
                draw(st.just({}) | st.just({"ef" * 32: 5})),
            )
        case kind if kind is Remove:
            return Remove(draw(entries(("file", "symlink"))), draw(write_ids), draw(write_ids))
        case kind if kind is Move:
            entry = draw(entries())
            source = "x/" if entry.is_dir else "x"
            replaced = None if entry.is_dir else draw(st.none() | entries(("file",)))
            return Move(source, entry, replaced, draw(write_ids), draw(write_ids))
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


@st.composite
def patches(draw: st.DrawFn, entry: Entry) -> Patch:
    """Return a patch of one file."""
    changed = draw(st.none() | posix(entry.kind))
    drop = draw(st.lists(st.sampled_from(["user.k", "user.ü"]), unique=True))
    values_set = {name: value for name, value in draw(values).items() if name not in drop}
    return Patch(entry, changed, values_set, tuple(drop))


def apply(row: tuple[dict[str, object], dict[str, bytes]], patch: Patch) -> None:
    """Change a row as Supabase does."""
    attributes, xattrs = row
    if patch.posix is not None:
        attributes |= patch.posix.to_json()
    for name in patch.drop_xattrs:
        xattrs.pop(name, None)
    xattrs |= patch.set_xattrs


@given(data=st.data(), before=values)
def test_joined_patches_do_what_each_did_in_turn(data: st.DataObject, before: dict[str, bytes]) -> None:
    """Whatever the row was: attributes, values set and dropped, also those set again or dropped again."""
    entry = data.draw(entries())
    one, other = data.draw(patches(entry)), data.draw(patches(entry))
    both = joined(one, other)
    assert both is not None
    in_turn: tuple[dict[str, object], dict[str, bytes]] = ({"mode": 1}, dict(before))
    at_once: tuple[dict[str, object], dict[str, bytes]] = ({"mode": 1}, dict(before))
    apply(in_turn, one)
    apply(in_turn, other)
    apply(at_once, both)
    assert in_turn == at_once
    assert not set(both.set_xattrs) & set(both.drop_xattrs)
    assert joined(replace(one, entry=replace(entry, ino=Ino(1 << 41))), other) is None
    assert joined(Mark(entry, is_new=True), other) is None


def test_joined_patches_stay_small() -> None:
    """Each time one is joined it is written anew: that must not cost ever more."""
    entry = Entry(parent="", name="f", component="f", kind="file", ino=Ino(2))
    large = [Patch(entry, set_xattrs={f"user.{number}": b"x" * 40_000}) for number in range(2)]
    assert joined(*large) is None
    assert joined(large[0], large[0]) is not None


@given(later=intents(), earlier=intents())
def test_what_goes_takes_only_its_own_attributes_along(later: Intent, earlier: Intent) -> None:
    """A removal outdates attributes; a marker's removal its making, too; nothing else does."""
    if isinstance(later, Put) or isinstance(earlier, Put):
        return
    takes = (isinstance(later, Remove) and isinstance(earlier, Patch)) or (
        isinstance(later, Unmark) and isinstance(earlier, Mark | Patch)
    )
    same = replace(earlier, entry=replace(earlier.entry, ino=later.entry.ino))
    other = replace(earlier, entry=replace(earlier.entry, ino=Ino(1 << 41)))
    assert outdates(later, same) == takes
    assert not outdates(later, other)


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
    [
        ("op", "shred"),
        ("staged", "../../etc/passwd"),
        ("staged", ""),
        ("entry", {}),
        ("size_bytes", "x"),
        ("sent", 1),
    ],
)
def test_what_is_not_understood_is_refused(what: str, value: object) -> None:
    """Another version wrote it, or somebody by hand: no file outside `staging/` is ever named."""
    entry = Entry(parent="", name="f", component="f", kind="file", ino=Ino(2))
    record = {**to_record(Put(entry, "0a.data", 1)), what: value}
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_record(record)
