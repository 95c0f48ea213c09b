"""Figures about the tiers, for the status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What the tiers hold now, and what they did since the store was opened."""

    memory_limit_bytes: int
    """The most it may hold."""
    memory_bytes: int
    memory_items: int
    """Blocks."""
    disk_limit_bytes: int
    """The most it may hold."""
    disk_bytes: int
    """Complete contents and the parts of unfinished ones."""
    disk_items: int
    """Complete contents."""
    memory_hits: int
    """Reads answered from memory."""
    disk_hits: int
    """Reads answered from disk, complete or not."""
    remote_reads: int
    """Reads that waited for Supabase."""
    requests: int
    bytes_fetched: int
    evictions: int
    """Blocks from memory and contents from disk."""
    disk_disabled: str | None
    """What failed on the local disk; None while it works."""
