"""Bytes, immutable, named by SHA-256 or version: memory, disk, and what is on its way here."""
