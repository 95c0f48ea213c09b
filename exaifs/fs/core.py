"""What every part of the file system works on, handed round as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from exaifs.cache.data.contents import ContentStore
from exaifs.cache.names.entries import Entry
from exaifs.cache.names.index import Index
from exaifs.errors import ReadOnly
from exaifs.fs.contact import Contact
from exaifs.fs.tables.claims import Claims
from exaifs.fs.tables.inodes import InodeTable
from exaifs.fs.unsent.changes import Changes
from exaifs.model import ObjectRef
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

    def stored(self, entry: Entry) -> ObjectRef:
        """Return which bytes an entry stands for, and where the bucket has them: moves may wait."""
        ref = entry.ref
        key = self.changes.outbox.stored_key(ref.key)
        return ref if key == ref.key else replace(ref, key=key)

    def check_writable(self) -> None:
        """Refuse a change to a read-only mount.

        Raises:
            ReadOnly: it is one.
        """
        if self.read_only:
            raise ReadOnly("the mount is read-only")
