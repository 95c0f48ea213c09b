"""Names on disk ↔ keys in the bucket."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given, strategies as st

from exaifs import names
from exaifs.errors import InvalidArgument, NameTooLong

KEY_ALPHABET = re.compile(r"[A-Za-z0-9_!.*'() &$=@;:+,-]+", re.ASCII)
"""What the real storage server takes, without the slash and the question mark."""

raw_names = st.binary(min_size=1, max_size=255).filter(
    lambda raw: b"/" not in raw and b"\0" not in raw and raw not in {b".", b".."}
)
tricky_names = st.text(alphabet="=0123456789ABCDEFabf.%", min_size=1, max_size=12).filter(
    lambda name: name not in {".", ".."}
)


@given(raw_names)
def test_every_name_survives(raw: bytes) -> None:
    """Any bytes that Linux takes as a name come back, through a key that every server takes."""
    name = os.fsdecode(raw)
    component = names.encode_name(name)
    assert KEY_ALPHABET.fullmatch(component)
    assert names.decode_component(component) == name


@given(tricky_names)
def test_names_that_look_like_escapes_survive(name: str) -> None:
    """A name made of what escapes are made of is not mistaken for one."""
    assert names.decode_component(names.encode_name(name)) == name


@given(tricky_names, tricky_names)
def test_no_two_names_share_a_key(one: str, other: str) -> None:
    """Different names have different keys."""
    assert (names.encode_name(one) == names.encode_name(other)) == (one == other)


@given(st.text(alphabet="=0123456789ABCDEFxyz./~é", min_size=1, max_size=12))
def test_foreign_components_are_shown(component: str) -> None:
    """Whatever another client stored is shown: decoded if the result leads back, else as it is."""
    shown = names.decode_component(component)
    assert shown == component or names.encode_name(shown) == component


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("report final (2).txt", "report final (2).txt"),
        ("a&b=c+d;e:f,g@h$i!j'k*", "a&b=c+d;e:f,g@h$i!j'k*"),
        ("é", "=C3=A9"),
        ("100%", "100=25"),
        ("what?", "what=3F"),
        ("a=41", "a=3D41"),
        ("a=4g", "a=4g"),
        ("a=ab", "a=ab"),
        ("=", "="),
        ("=3D", "=3D3D"),
        ("\udcff", "=FF"),
        ("\n", "=0A"),
        (names.PLACEHOLDER, "=2EemptyFolderPlaceholder"),
        (f"x{names.PLACEHOLDER}", "x=2EemptyFolderPlaceholder"),
        (f"{names.PLACEHOLDER}x", f"{names.PLACEHOLDER}x"),
    ],
)
def test_known_pairs(name: str, component: str) -> None:
    """The scheme is fixed: these names are in buckets already."""
    assert names.encode_name(name) == component
    assert names.decode_component(component) == name


@pytest.mark.parametrize("component", ["=2F", "=00", "=2E", "=2E=2E", "=41", "=e9", "a=3Db", "é"])
def test_components_nobody_would_make_stay(component: str) -> None:
    """An escape that our encoder does not write belongs to somebody else's name."""
    assert names.decode_component(component) == component


@pytest.mark.parametrize(
    ("component", "showable"),
    [("a", True), ("...", True), ("", False), (".", False), ("..", False), ("a\0b", False)],
)
def test_what_can_be_shown(component: str, showable: object) -> None:
    """Components that no directory can hold are left out."""
    assert names.is_showable(component) is showable


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b"])
def test_names_no_directory_may_hold(name: str) -> None:
    """The kernel never sends these; whoever else does is refused."""
    with pytest.raises(InvalidArgument):
        names.check_name(name)


def test_longest_name() -> None:
    """255 bytes are a name, 256 are not, however many characters that is."""
    names.check_name("x" * 255)
    names.check_name("é" * 127)
    with pytest.raises(NameTooLong):
        names.check_name("x" * 256)
    with pytest.raises(NameTooLong):
        names.check_name("é" * 128)


def test_longest_key() -> None:
    """A path whose key passes the limit is refused before anything is sent."""
    prefix = "d" * 644 + "/"
    assert names.child_key(prefix, "x" * 255) == prefix + "x" * 255
    with pytest.raises(NameTooLong):
        names.child_key(prefix + "e/", "x" * 255)
    with pytest.raises(NameTooLong):
        names.child_key(prefix, "日" * 85)


@pytest.mark.parametrize(
    ("key", "parts"),
    [("a", ("", "a")), ("a/b", ("a/", "b")), ("a/b/c", ("a/b/", "c")), ("a/", ("a/", ""))],
)
def test_split_key(key: str, parts: tuple[str, str]) -> None:
    """A key is its directory's prefix and its last component."""
    assert names.split_key(key) == parts


def test_path_of() -> None:
    """People read paths, not keys."""
    assert names.path_of("=C3=A9/100=25/plain") == "é/100%/plain"
