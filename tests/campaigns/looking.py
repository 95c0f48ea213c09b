"""What is there: in the mount, read as programs do, and in the bucket, asked by a client of its own."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx

from tests.campaigns.worlds import Node
from tests.support.objects import get_whole

PLACEHOLDER = ".emptyFolderPlaceholder"
_PAGE = 1000


def mounted_tree(root: Path, *, content: bool = True) -> dict[str, Node]:
    """Return everything below a directory: files and directories, by relative path.

    Args:
        root: call this with a deadline if it is a mount.
        content: read the files; else all look empty.
    """
    found: dict[str, Node] = {}
    for entry in _walk(root):
        path = os.path.relpath(entry.path, root)
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            found[path] = Node("directory", mode=stat.S_IMODE(status.st_mode))
            continue
        data = Path(entry.path).read_bytes() if content else b""
        assert not content or len(data) == status.st_size, (
            f"{path}: {len(data)} bytes, not {status.st_size}"
        )
        # The user's own attributes, not what the daemon says about the file.
        xattrs = frozenset(
            (name, os.getxattr(entry.path, name))
            for name in os.listxattr(entry.path)
            if name.startswith("user.") and not name.startswith(_MADE)
        )
        found[path] = Node("file", data, stat.S_IMODE(status.st_mode), xattrs)
    return found


_MADE = ("user.exai.", "user.checksum.", "user.mime_type")


def _walk(directory: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


@dataclass(frozen=True, slots=True)
class Row:
    """Of `file_metadata`, as far as it speaks of the bytes."""

    sha256: str | None
    size_bytes: int


class BucketClient:
    """Asks a Supabase project what is in a bucket, by plain HTTP; knows nothing of exaifs but its table."""

    def __init__(self, http: httpx.Client, bucket: str) -> None:
        self._http = http
        self._bucket = bucket

    @classmethod
    @contextmanager
    def open(cls, environment: Mapping[str, str], url: str) -> Iterator[BucketClient]:
        """Open one.

        Args:
            environment: names bucket and key.
            url: of the server itself, not of a proxy before it.
        """
        key = environment["SUPABASE_SERVICE_ROLE_KEY"]
        headers = {"apikey": key, "Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
            yield cls(http, environment["FILE_STORAGE_BUCKET"])

    def keys(self) -> set[str]:
        """Return all keys, by the storage API's own listing, folder by folder."""
        found: set[str] = set()
        folders = [""]
        while folders:
            folder = folders.pop()
            for item in self._listing(folder):
                path = f"{folder}{item['name']}"
                if item["id"] is None:
                    folders.append(path + "/")
                else:
                    found.add(path)
        return found

    def _listing(self, folder: str) -> Iterator[dict[str, str | None]]:
        offset = 0
        while True:
            question = {
                "prefix": folder,
                "limit": _PAGE,
                "offset": offset,
                "sortBy": {"column": "name", "order": "asc"},
            }
            page = self._http.post(f"/storage/v1/object/list/{self._bucket}", json=question)
            items = page.raise_for_status().json()
            yield from items
            if len(items) < _PAGE:
                return
            offset += _PAGE

    def get(self, key: str) -> bytes:
        """Return an object's bytes."""
        path = f"/storage/v1/object/{self._bucket}/{quote(key)}"
        return get_whole(self._http, path).raise_for_status().content

    def rows(self) -> dict[str, Row]:
        """Return the rows of the bucket's files, by key."""
        found: dict[str, Row] = {}
        question = {
            "bucket": f"eq.{self._bucket}",
            "select": "supabase_storage_path,file_hash,file_size",
            "order": "supabase_storage_path",
        }
        while True:
            page = {**question, "limit": str(_PAGE), "offset": str(len(found))}
            rows = self._http.get("/rest/v1/file_metadata", params=page).raise_for_status().json()
            for row in rows:
                found[row["supabase_storage_path"]] = Row(row["file_hash"], row["file_size"])
            if len(rows) < _PAGE:
                return found


def bucket_differences(client: BucketClient, tree: Mapping[str, Node]) -> list[str]:
    """Return, in words, what in a bucket is not as in a tree; file names must be their own keys.

    Objects and bytes must be the same, no object may be there that the tree has not, each file must have a
    row that says its size and no other digest, and no row may speak of a file that is gone. A row without
    a digest is what an upload leaves that was never acknowledged.
    """
    wrong: list[str] = []
    keys = client.keys()
    files = {path: node.data for path, node in tree.items() if node.kind == "file"}
    objects = {key for key in keys if key.rpartition("/")[2] != PLACEHOLDER}
    wrong += [f"the bucket lacks {path}" for path in sorted(set(files) - objects)]
    wrong += [f"the bucket still has {key}" for key in sorted(objects - set(files))]
    folders = {parent for key in keys for parent in _folders(key)}
    directories = {path for path, node in tree.items() if node.kind == "directory"}
    wrong += [f"the bucket lacks the folder {path}" for path in sorted(directories - folders)]
    wrong += [f"the bucket still has the folder {path}" for path in sorted(folders - directories)]
    rows = client.rows()
    for path in sorted(objects & set(files)):
        data, expected = client.get(path), files[path]
        if data != expected:
            wrong.append(
                f"the bucket has other bytes of {path}: {data[:20]!r} {len(data)}, {expected[:20]!r}"
            )
        row, digest = rows.get(path), hashlib.sha256(expected).hexdigest()
        if row is None or row.size_bytes != len(expected) or row.sha256 not in {digest, None}:
            wrong.append(f"the row of {path} says {row}, not {len(expected)} bytes with {digest}")
    wrong += [f"a row speaks of {key}, which is gone" for key in sorted(set(rows) - keys)]
    return wrong


def _folders(key: str) -> list[str]:
    parts = key.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]
