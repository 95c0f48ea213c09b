"""What goes over the wire and comes back: URLs, headers, JSON. Pure functions, no I/O.

Answers are checked here once, so that the layers above meet only whole values: anything that is not
what our own SQL functions return raises `Unreachable`, because it did not come from them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from exaifs.errors import BucketMissing, Rejected, Unreachable
from exaifs.model import ObjectRecord, Posix
from exaifs.remote.interface import (
    Change,
    ChangePage,
    Folder,
    Hello,
    Listing,
    ProviderIdAnswer,
    ProviderUpload,
    RowPatch,
    Upload,
)

_SAFE = "/!$&'()*+,;=:@-._~"
"""Characters of a key that stay as they are in a URL: the embedded server does not decode them."""

_MAX_METADATA_BYTES = 6 * 1024
"""Of JSON in `x-metadata`; as base64 it stays far below the 16 KB that servers take for all headers."""

_MIME = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}", re.ASCII)


def quote_key(key: str) -> str:
    """Return a key as it stands in a URL's path, the same on the real and on the embedded server."""
    return quote(key, safe=_SAFE)


def upload_headers(size_bytes: int, upload: Upload) -> dict[str, str]:
    """Return the headers of a PUT of an object.

    Raises:
        Rejected: the MIME type is none.
    """
    if not _MIME.fullmatch(upload.mime_type):
        raise Rejected(f"not a MIME type: {upload.mime_type!r}")
    return {
        "content-length": str(size_bytes),
        "content-type": upload.mime_type,
        "cache-control": "no-cache",
        "x-upsert": "true",
        "x-metadata": base64.b64encode(_metadata(upload)).decode("ascii"),
    }


def resumable_metadata(bucket: str, key: str, upload: Upload) -> str:
    """Return the `Upload-Metadata` of an upload in pieces: the same that `upload_headers` say of a PUT."""
    fields = {
        "bucketName": bucket.encode(),
        "objectName": key.encode(),
        "contentType": upload.mime_type.encode(),
        "cacheControl": b"no-cache",
        "metadata": _metadata(upload),
    }
    return ",".join(f"{name} {base64.b64encode(value).decode('ascii')}" for name, value in fields.items())


def xattrs_fit(upload: Upload) -> bool:
    """Tell whether the attributes travel in the upload's header; else a patch has to bring them."""
    return len(json.dumps(_fields(upload))) <= _MAX_METADATA_BYTES


def _metadata(upload: Upload) -> bytes:
    """Return what the trigger copies into the row, as far as a header can hold it."""
    fields = _fields(upload)
    if not xattrs_fit(upload):
        del fields["xattrs"]
    return json.dumps(fields).encode()


def _fields(upload: Upload) -> dict[str, Any]:
    return {
        "exaifs": 1,
        "sha256": upload.sha256,
        "write_id": upload.write_id,
        "mime": upload.mime_type,
        "posix": upload.posix.to_json(),
        "xattrs": _xattrs_to_json(upload.xattrs),
    }


def commit_fields(upload: Upload, size_bytes: int | None, local_cache_path: str | None) -> str:
    """Return `p_fields` of `exaifs_commit`; without a size it completes no row."""
    fields = {**_fields(upload), "size": size_bytes}
    if local_cache_path is not None:
        fields["local_cache_path"] = local_cache_path
    return json.dumps(fields)


def patch_fields(patch: RowPatch) -> str:
    """Return `p_fields` of `exaifs_patch`."""
    fields: dict[str, Any] = {}
    if patch.posix is not None:
        fields["posix"] = patch.posix.to_json()
    if patch.set_xattrs:
        fields["set_xattrs"] = _xattrs_to_json(patch.set_xattrs)
    if patch.drop_xattrs:
        fields["drop_xattrs"] = list(patch.drop_xattrs)
    return json.dumps(fields)


def _xattrs_to_json(xattrs: Mapping[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(value).decode("ascii") for name, value in xattrs.items()}


# answers


def foreign_answer(what: str) -> Unreachable:
    """Return the error for an answer that our SQL functions do not give."""
    return Unreachable(
        f"{what}: an answer that did not come from Supabase. A proxy or login page may stand between: "
        "check SUPABASE_URL and the network."
    )


def list_of(answer: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list that an answer must hold.

    Raises:
        Unreachable: it does not.
    """
    value = answer.get(name)
    if not isinstance(value, list):
        raise foreign_answer(name)
    return value


def record_from_json(value: Any) -> ObjectRecord:
    """Read one record.

    Raises:
        Unreachable: it is none.
    """
    if not isinstance(value, Mapping):
        raise foreign_answer("record")
    key, version, size = value.get("key"), value.get("version"), value.get("size")
    if not isinstance(key, str) or not isinstance(version, str) or not isinstance(size, int) or size < 0:
        raise foreign_answer("record")
    return ObjectRecord(
        key=key,
        version=version or _stand_in_version(value),
        size_bytes=size,
        mime_type=_text(value.get("mime")) or "application/octet-stream",
        etag=_text(value.get("etag")) or "",
        created_ns=_ns(value.get("created_ns")),
        updated_ns=_ns(value.get("updated_ns")),
        file_id=_text(value.get("file_id")),
        sha256=_text(value.get("sha256")),
        write_id=_text(value.get("write_id")),
        posix=Posix.from_json(value.get("posix")),
        xattrs=_xattrs_from_json(value.get("xattrs")),
        provider_file_ids=_mapping(value.get("provider_file_ids")),
    )


def _stand_in_version(value: Mapping[str, Any]) -> str:
    """Name the content of an object from before Supabase gave versions: key, ETag, time and size."""
    parts = [str(value.get(name)) for name in ("key", "etag", "updated_ns", "size")]
    return "t-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _ns(value: Any) -> int:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else 0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _xattrs_from_json(value: Any) -> Mapping[str, bytes]:
    """Read attributes; one that somebody edited into nonsense is left out."""
    xattrs = {}
    for name, text in _mapping(value).items():
        try:
            xattrs[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, TypeError, ValueError):
            continue
    return xattrs


def records_from_json(answer: Mapping[str, Any]) -> tuple[ObjectRecord, ...]:
    """Read the `records` of an answer."""
    return tuple(record_from_json(value) for value in _list(answer, "records"))


def next_from_json(answer: Mapping[str, Any]) -> str | None:
    """Read where the next page starts."""
    return _text(answer.get("next"))


def listing_from_json(answer: Mapping[str, Any]) -> Listing:
    """Read an answer of `exaifs_list_directory`."""
    folders = tuple(_folder(value) for value in _list(answer, "folders"))
    return Listing(records_from_json(answer), folders, next_from_json(answer))


def _folder(value: Any) -> Folder:
    name = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(name, str):
        raise foreign_answer("listing")
    marker = value.get("marker")
    return Folder(name, None if marker is None else record_from_json(marker))


def changes_from_json(answer: Mapping[str, Any]) -> ChangePage:
    """Read an answer of `exaifs_changes`."""
    cursor, more, continuous = answer.get("cursor"), answer.get("more"), answer.get("continuous")
    if not isinstance(cursor, str) or not isinstance(more, bool) or not isinstance(continuous, bool):
        raise foreign_answer("changes")
    changes = tuple(_change(value) for value in _list(answer, "changes"))
    return ChangePage(changes, cursor, more=more, continuous=continuous)


def _change(value: Any) -> Change:
    key = value.get("key") if isinstance(value, Mapping) else None
    if not isinstance(key, str):
        raise foreign_answer("changes")
    record = value.get("record")
    return Change(key, None if record is None else record_from_json(record))


def hello_from_json(answer: Mapping[str, Any], bucket: str) -> Hello:
    """Read an answer of `exaifs_hello`.

    Raises:
        BucketMissing: the server knows no such bucket.
        Unreachable: the answer is none of ours.
    """
    schema_version = answer.get("schema_version")
    if not isinstance(schema_version, int):
        raise foreign_answer("hello")
    found = answer.get("bucket")
    if not isinstance(found, Mapping):
        raise BucketMissing(
            f"there is no bucket {bucket!r}. `exaifs init --apply --bucket {bucket}` creates it, or "
            "name another one in FILE_STORAGE_BUCKET."
        )
    limit = str(found.get("file_size_limit"))
    return Hello(
        schema_version=schema_version,
        size_limit_bytes=int(limit) if limit.isascii() and limit.isdigit() else None,
        public=found.get("public") is True,
        trigger_installed=answer.get("trigger_installed") is True,
        bucket_registered=answer.get("bucket_registered") is True,
    )


def provider_records_from_json(answer: Mapping[str, Any]) -> tuple[Mapping[str, Any] | str, ...]:
    """Read an answer of `exaifs_find_provider_ids`."""
    records = (_provider_record(value) for value in _list(answer, "records"))
    return tuple(record for record in records if record is not None)


def _provider_record(value: Any) -> Mapping[str, Any] | str | None:
    return value if isinstance(value, (Mapping, str)) else None


def provider_answer_from_json(answer: Mapping[str, Any]) -> ProviderIdAnswer:
    """Read an answer of `exaifs_set_provider_id`."""
    stored, record = answer.get("stored"), answer.get("record")
    if not isinstance(stored, bool):
        raise foreign_answer("provider id")
    return ProviderIdAnswer(
        stored,
        _provider_record(answer.get("current")),
        None if record is None else record_from_json(record),
        of_other_bytes=answer.get("of_other_bytes") is True,
    )


def provider_uploads_from_json(answer: Mapping[str, Any]) -> tuple[ProviderUpload, ...]:
    """Read an answer of `exaifs_unused_provider_files`."""
    return tuple(_provider_upload(value) for value in _list(answer, "files"))


def _provider_upload(value: Any) -> ProviderUpload:
    found = _mapping(value)
    file_id, sha256, size = found.get("id"), found.get("sha256"), found.get("size")
    if not isinstance(file_id, str) or not isinstance(sha256, str) or not isinstance(size, int):
        raise foreign_answer("provider files")
    return ProviderUpload(file_id, sha256, size, _text(found.get("noted_at")) or "")


def _list(answer: Mapping[str, Any], name: str) -> list[Any]:
    value = answer.get(name)
    if not isinstance(value, list):
        raise foreign_answer(name)
    return value
