"""What every part of the file system works on, handed round as one value."""

from __future__ import annotations

from dataclasses import dataclass

from exaifs.cache.contents import ContentStore
from exaifs.cache.index import Index
from exaifs.errors import ReadOnly
from exaifs.fs.changes import Changes
from exaifs.fs.claims import Claims
from exaifs.fs.contact import Contact
from exaifs.fs.inodes import InodeTable
from exaifs.remote.interface import Remote


@dataclass(frozen=True, slots=True)
class Core:
    """The bucket, what is known of it, and what is in use of it, for one mount."""

    remote: Remote
    index: Index
    table: InodeTable
    contents: ContentStore
    contact: Contact
    claims: Claims
    changes: Changes
    read_only: bool

    def check_writable(self) -> None:
        """Refuse a change to a read-only mount.

        Raises:
            ReadOnly: it is one.
        """
        if self.read_only:
            raise ReadOnly("the mount is read-only")
