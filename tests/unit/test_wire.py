"""URLs, headers and JSON, without any server."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from hypothesis import given, strategies as st

from exaifs.errors import BucketMissing, Rejected, Unreachable
from exaifs.model import Posix
from exaifs.names import encode_name
from exaifs.remote import wire
from exaifs.remote.download import normal_etag
from exaifs.remote.interface import RowPatch, Upload
from exaifs.remote.session import identity_of

RECORD: dict[str, Any] = {
    "key": "a/b",
    "version": "v1",
    "size": 3,
    "mime": "text/plain",
    "etag": '"e"',
    "created_ns": "1700000000123456789",
    "updated_ns": "1700000000123456790",
    "file_id": "f",
    "sha256": "ab" * 32,
    "write_id": "w",
    "posix": {"mode": 420, "mtime_ns": "9007199254740993", "kind": "symlink"},
    "xattrs": {"color": base64.b64encode(b"\x00red").decode()},
    "provider_file_ids": {"openai": {"id": "file-1"}},
}


def upload(**changes: Any) -> Upload:
    """Return an upload with some fields changed."""
    fields: dict[str, Any] = {
        "sha256": "ab" * 32,
        "mime_type": "text/plain",
        "posix": Posix(mode=0o644, mtime_ns=2**60 + 1),
        "write_id": "w",
        **changes,
    }
    return Upload(**fields)


def metadata_of(headers: dict[str, str]) -> dict[str, Any]:
    """Decode `x-metadata`."""
    decoded: dict[str, Any] = json.loads(base64.b64decode(headers["x-metadata"]))
    return decoded


class TestUrls:
    """Keys in a URL."""

    def test_characters_that_stay(self) -> None:
        """What the embedded server would not decode is not encoded."""
        assert wire.quote_key("a/b!$&'()*+,;=:@-._~") == "a/b!$&'()*+,;=:@-._~"
        assert wire.quote_key("a b") == "a%20b"

    @given(
        st.text(min_size=1, max_size=60).filter(lambda name: name not in {".", ".."} and "/" not in name)
    )
    def test_keys_survive_the_url(self, name: str) -> None:
        """Neither quoting nor httpx changes an encoded name on its way."""
        try:
            key = "d/" + encode_name(name)
        except UnicodeEncodeError:  # a lone surrogate that no file name decodes to
            return
        url = httpx.URL(f"http://host/storage/v1/object/bucket/{wire.quote_key(key)}")
        sent = url.raw_path.decode("ascii")
        assert unquote(sent) == f"/storage/v1/object/bucket/{key}"

    @pytest.mark.parametrize(
        ("url", "identity"),
        [
            ("https://PROJECT.supabase.co", "https://project.supabase.co/b"),
            ("https://project.supabase.co:443", "https://project.supabase.co/b"),
            ("https://project.supabase.co/", "https://project.supabase.co/b"),
            ("http://127.0.0.1:54321", "http://127.0.0.1:54321/b"),
            ("https://example.org/supabase", "https://example.org/supabase/b"),
        ],
    )
    def test_identity(self, url: str, identity: str) -> None:
        """One project has one identity, however its URL is written."""
        assert urlsplit(identity).scheme
        assert identity_of(url, "b") == identity


class TestUploadHeaders:
    """What goes with a PUT."""

    def test_all_of_them(self) -> None:
        """The trigger finds hash, attributes and write id in the upload's own metadata."""
        headers = wire.upload_headers(7, upload(xattrs={"a": b"\xff"}))
        assert headers["content-length"] == "7"
        assert headers["content-type"] == "text/plain"
        assert headers["x-upsert"] == "true"
        assert metadata_of(headers) == {
            "exaifs": 1,
            "sha256": "ab" * 32,
            "write_id": "w",
            "mime": "text/plain",
            "posix": {"mode": 0o644, "mtime_ns": str(2**60 + 1), "kind": "file"},
            "xattrs": {"a": "/w=="},
        }

    def test_long_attributes_are_left_to_the_commit(self) -> None:
        """Headers stay far below what servers take; the rest of the metadata is still there."""
        headers = wire.upload_headers(7, upload(xattrs={"a": bytes(65_536)}))
        assert sum(map(len, headers.values())) < 12_000
        assert "xattrs" not in metadata_of(headers)
        assert metadata_of(headers)["write_id"] == "w"

    @pytest.mark.parametrize("mime_type", ["", "text", "text/plain; charset=utf-8", "a/b\r\nx: y", "té/x"])
    def test_no_mime_type(self, mime_type: str) -> None:
        """A type that is none never becomes a header."""
        with pytest.raises(Rejected):
            wire.upload_headers(0, upload(mime_type=mime_type))

    def test_commit_fields(self) -> None:
        """The commit says the same once more, and what only it knows."""
        fields = json.loads(wire.commit_fields(upload(), 7, "ab/cd"))
        assert fields["size"] == 7
        assert fields["local_cache_path"] == "ab/cd"
        assert fields["posix"]["mtime_ns"] == str(2**60 + 1)
        assert "local_cache_path" not in json.loads(wire.commit_fields(upload(), 7, None))

    def test_patch_fields(self) -> None:
        """A patch says only what changes."""
        assert json.loads(wire.patch_fields(RowPatch())) == {}
        patch = RowPatch(Posix(mode=0o600), {"a": b"b"}, ["c"])
        assert json.loads(wire.patch_fields(patch)) == {
            "posix": {"mode": 0o600, "kind": "file"},
            "set_xattrs": {"a": "Yg=="},
            "drop_xattrs": ["c"],
        }


class TestAnswers:
    """JSON of the SQL functions."""

    def test_record(self) -> None:
        """All fields arrive; nanoseconds are exact beyond what a float holds."""
        record = wire.record_from_json(RECORD)
        assert (record.key, record.version, record.size_bytes) == ("a/b", "v1", 3)
        assert record.created_ns == 1700000000123456789
        assert record.posix == Posix(mode=420, mtime_ns=9007199254740993, kind="symlink")
        assert record.xattrs == {"color": b"\x00red"}
        assert record.provider_file_ids == {"openai": {"id": "file-1"}}

    def test_record_without_row(self) -> None:
        """An object that has no row is an object all the same."""
        record = wire.record_from_json({"key": "k", "version": "v", "size": 0, "file_id": None})
        assert (record.file_id, record.sha256, record.posix) == (None, None, Posix())
        assert record.mime_type == "application/octet-stream"

    def test_object_without_version(self) -> None:
        """An object from before there were versions gets a name that changes with its content."""
        old = {**RECORD, "version": ""}
        version = wire.record_from_json(old).version
        assert version
        assert wire.record_from_json(dict(old)).version == version
        for changed in ({"key": "other"}, {"etag": '"f"'}, {"updated_ns": "1"}, {"size": 4}):
            assert wire.record_from_json({**old, **changed}).version != version

    def test_attribute_that_somebody_edited(self) -> None:
        """Nonsense in one attribute does not hide the file, nor its other attributes."""
        record = wire.record_from_json({**RECORD, "xattrs": {"bad": "?", "none": None, "good": "Yg=="}})
        assert record.xattrs == {"good": b"b"}

    @pytest.mark.parametrize(
        "value",
        [
            None,
            [],
            "text",
            {},
            {**RECORD, "key": 1},
            {**RECORD, "version": None},
            {**RECORD, "size": "3"},
            {**RECORD, "size": -1},
            {**RECORD, "size": None},
        ],
    )
    def test_no_record(self, value: Any) -> None:
        """What lacks key, version or size is no record: better no answer than a wrong one."""
        with pytest.raises(Unreachable):
            wire.record_from_json(value)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from([*RECORD, "records", "folders", "next", "changes", "cursor"]), inner
                )
            ),
        )
    )
    def test_any_json(self, value: Any) -> None:
        """No JSON at all makes a reader fail in another way."""
        for answer in (value if isinstance(value, dict) else {}, {"records": value, "folders": value}):
            for parse in (wire.listing_from_json, wire.changes_from_json, wire.records_from_json):
                try:
                    parse(answer)
                except Unreachable:
                    continue

    def test_listing(self) -> None:
        """A page has records, folders with or without a marker, and where it goes on."""
        listing = wire.listing_from_json(
            {
                "records": [RECORD],
                "folders": [{"name": "d", "marker": None}, {"name": "e", "marker": RECORD}],
                "next": "a/b",
            }
        )
        assert [record.key for record in listing.records] == ["a/b"]
        assert [(folder.component, folder.marker is None) for folder in listing.folders] == [
            ("d", True),
            ("e", False),
        ]
        assert listing.next_after == "a/b"

    def test_changes(self) -> None:
        """A key that is gone has no record."""
        page = wire.changes_from_json(
            {
                "changes": [{"key": "gone", "record": None}, {"key": "a/b", "record": RECORD}],
                "cursor": "7",
                "more": True,
                "continuous": True,
            }
        )
        assert [(change.key, change.record is None) for change in page.changes] == [
            ("gone", True),
            ("a/b", False),
        ]
        assert (page.cursor, page.more, page.continuous) == ("7", True, True)

    def test_hello(self) -> None:
        """What the server can do; what it does not say it cannot."""
        hello = wire.hello_from_json(
            {"schema_version": 7, "bucket": {"id": "b", "file_size_limit": 1000}}, "b"
        )
        assert (hello.schema_version, hello.size_limit_bytes, hello.public) == (7, 1000, False)
        assert not hello.trigger_installed

    def test_hello_without_bucket(self) -> None:
        """A missing bucket is named, with what to do."""
        with pytest.raises(BucketMissing, match=r"'b'.*exaifs init"):
            wire.hello_from_json({"schema_version": 7, "bucket": None}, "b")


@pytest.mark.parametrize("text", ['"abc"', 'W/"abc"', "abc", "W/abc"])
def test_etags_are_compared_without_dress(text: str) -> None:
    """Servers quote, proxies weaken."""
    assert normal_etag(text) == "abc"
