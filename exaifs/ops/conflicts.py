"""What `exaifs conflicts` does: finds the bytes that lost a conflict, compares, restores and discards them.

The store is a directory of files (`cache.conflicts`), so all of this works while the daemon runs and while
none does; only restoring to where the bytes belonged goes through the mount, like any program's write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from exaifs import mountpoint
from exaifs.cache.directory import directory_of
from exaifs.cache.unsent.conflicts import (
    DIRECTORY,
    Conflict,
    data_of,
    discard,
    list_conflicts,
    one_at_a_time,
)
from exaifs.config import Config
from exaifs.errors import ConfigError, ExaifsError, MountError, NotFound
from exaifs.ops.status import read_status
from exaifs.processes import LOCK_NAME, read_lock
from exaifs.remote.session import identity_of

_NAMED_IDS: Final = 10
"""Ids named in a message about one that does not exist."""


@dataclass(frozen=True, slots=True)
class Store:
    """The conflicts of one bucket on this host.

    Attributes:
        cache_directory: of the bucket; need not exist.
        mount: where the bucket is mounted with this cache directory; None: nowhere, or not known.
    """

    cache_directory: Path
    mount: Path | None

    @property
    def directory(self) -> Path:
        """Where the files are; need not exist."""
        return self.cache_directory / DIRECTORY

    def known(self) -> list[Conflict]:
        """Return what is kept, oldest first.

        Raises:
            OSError: the directory cannot be read.
        """
        try:
            os.listdir(self.directory)  # noqa: PTH208 - glob(3) takes "not permitted" for "empty"
        except FileNotFoundError:
            return []
        return list_conflicts(self.directory)

    def undescribed(self) -> int:
        """Return of how many files with bytes no description can be read."""
        known = {conflict.id for conflict in self.known()}
        return sum(path.stem not in known for path in self.directory.glob("*.data"))

    def find(self, conflict_id: str) -> Conflict:
        """Return one.

        Raises:
            NotFound: it is not there; says which are.
            OSError: the directory cannot be read.
        """
        known = self.known()
        for conflict in known:
            if conflict.id == conflict_id:
                return conflict
        ids = [conflict.id for conflict in known]
        more = f" and {len(ids) - _NAMED_IDS} more" if len(ids) > _NAMED_IDS else ""
        there = (
            f"these are: {', '.join(ids[:_NAMED_IDS])}{more}"
            if ids
            else f"there are none in {self.directory}"
        )
        elsewhere = "" if self.mount else ". One of a mount with another cache directory: --mount DIR"
        raise NotFound(f"no conflict {conflict_id!r}; {there}{elsewhere}")

    def data(self, conflict: Conflict) -> Path:
        """Return the file with a conflict's bytes."""
        return data_of(self.directory, conflict)


def find_store(mount: Path | None, read_config: Callable[[], Config]) -> Store:
    """Find the conflicts of a mount, or of the bucket that the settings name.

    Args:
        mount: a mountpoint: its daemon says where the cache directory is, so that no setting is needed.
        read_config: called where no mountpoint is given; no key is needed, and nobody is asked.

    Raises:
        MountError: not an exaifs mount, or its daemon does not answer.
        ConfigError: neither a mount nor a project is named.
    """
    if mount is not None:
        directory = _told(read_status(mount))
        if directory is None:
            raise MountError(
                f"the daemon of the mount at {mount} does not say where its cache directory is: it is of "
                "an older version. Mount again, or leave DIR out and set SUPABASE_URL."
            )
        if not directory.is_dir():
            raise MountError(
                f"the cache directory {directory} of the mount at {mount} cannot be seen from here: run "
                "this where the daemon runs (the same host or container)."
            )
        return Store(directory, mountpoint.resolved(mount))
    directory = directory_of_settings(read_config())
    return Store(directory, serving(directory))


def directory_of_settings(config: Config) -> Path:
    """Return the cache directory of the configured bucket.

    Raises:
        ConfigError: no project is named.
    """
    if not config.supabase_url:
        raise ConfigError(
            "SUPABASE_URL is not set, so it is not known which cache directory is meant. Set it as for the "
            "mount (no key is needed), or name a mountpoint."
        )
    return directory_of(config.cache_dir, identity_of(config.supabase_url, config.bucket))


def serving(cache_directory: Path) -> Path | None:
    """Return where a running daemon has mounted the bucket of this cache directory."""
    noted = read_lock(cache_directory / LOCK_NAME).get("mountpoint")
    if not isinstance(noted, str):
        return None
    found = mountpoint.find(Path(noted))
    if found is None or not found.is_ours:
        return None
    try:
        told = _told(read_status(found.path))
    except MountError:
        return None
    return found.path if told == cache_directory else None


def _told(status: dict[str, Any]) -> Path | None:
    value = status["mount"].get("cache_directory")
    return Path(value) if isinstance(value, str) else None


def discard_all(store: Store, conflicts: Sequence[Conflict]) -> None:
    """Delete bytes and descriptions; what somebody else deleted meanwhile is no error.

    Raises:
        OSError: one cannot be deleted.
    """
    if conflicts:
        with one_at_a_time(store.directory):
            for conflict in conflicts:
                discard(store.directory, conflict)


def described(store: Store, conflict: Conflict) -> dict[str, Any]:
    """Return a conflict for programs."""
    return {
        "id": conflict.id,
        "path": conflict.path,
        "reason": conflict.reason,
        "noted_unix_s": conflict.noted_ns / 1e9,
        "data": str(store.data(conflict)),
        "kept": _version(conflict.kept),
        "winner": None if conflict.winner is None else _version(conflict.winner),
    }


def _version(version: Any) -> dict[str, Any]:
    return {
        "size_bytes": version.size_bytes,
        "sha256": version.sha256,
        "written_unix_s": None if version.written_ns is None else version.written_ns / 1e9,
        "host": version.host,
    }


def explain_os_error(exc: OSError, doing: str) -> ExaifsError:
    """Return the error of a failed system call, with what was being done and what to do."""
    advice = {
        errno.EROFS: "The mount is read-only: name another place with --to.",
        errno.EEXIST: "Something else is in the way: name another place with --to.",
        errno.ENOTDIR: "Something else is in the way: name another place with --to.",
        errno.ELOOP: "There is a symbolic link now: name another place with --to.",
        errno.ENOSPC: "Free some space, or name another place with --to.",
        errno.EDQUOT: "Free some space, or name another place with --to.",
        errno.EFBIG: "The bucket takes no file of that size: name a place outside with --to.",
        errno.EACCES: "Run it as the user who mounted, or root.",
        errno.ENOTCONN: "The daemon is gone: mount again.",
    }.get(exc.errno or 0, "")
    return ExaifsError(f"{doing}: {exc.strerror or exc}. Nothing was discarded. {advice}".rstrip())
