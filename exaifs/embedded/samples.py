"""Real files for a first look, made here so that the package carries no binaries.

They show what a bucket is used for: notes with any name, tables, a picture, a document, and an upload
that belongs to a conversation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CONVERSATION_ID: Final = "6f1d2c0e-8f5b-4f0e-9a53-0d6c2b7a4e11"
"""Stands in for the continuation id under which a chat stores its uploads."""

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SOLAR_KWH: Final = (78, 131, 264, 372, 455, 481, 468, 407, 298, 186, 92, 61)
"""A year of a 4 kWp roof in central Europe."""

_README: Final = f"""\
# This directory is a Supabase Storage bucket

Every file here is an object in the bucket `user-files`: what you save is uploaded when it is closed, and
what other programs upload appears here within a second.

Try it:

    ls -l                                    # one look, no download
    cp /etc/hostname .                       # upload
    cat hostname                             # read: memory, then disk cache, then Supabase
    getfattr -d README.md                    # file id, state and SHA-256, kept beside the file
    setfattr -n user.topic -v demo README.md # attributes of your own
    ls uploads/{CONVERSATION_ID}

All of it is ordinary: rename, move, edit, delete. These samples are written once and never again.
"""
_NOTE: Final = """\
# Grüße, 你好, Привет

Object stores take only some ASCII characters in keys. Names are escaped on the way there and come
back exactly, so this note's name may hold umlauts, commas and 日本語.
"""
_QUESTION: Final = """\
Conversation upload
===================
Question: in which month did the roof first deliver more than 400 kWh?
See ../../data/solar-2025.csv and its chart.
"""

_PLOT_HEIGHT: Final = 240
_BAR_WIDTH: Final = 28
_GAP: Final = 8
_SCALE_KWH: Final = 500
_PAPER: Final = bytes((255, 255, 255))
_LINE: Final = bytes((218, 222, 228))
_BAR: Final = bytes((62, 207, 142))


def sample_files() -> Mapping[str, bytes]:
    """Return the samples' contents by path, relative to the mountpoint."""
    return {
        "README.md": _README.encode(),
        "notes/Grüße, 日本語.md": _NOTE.encode(),
        "data/solar-2025.csv": _table().encode(),
        "data/solar-2025.png": _chart(),
        "documents/welcome.pdf": _document(),
        f"uploads/{CONVERSATION_ID}/question.txt": _QUESTION.encode(),
    }


def write_samples(directory: Path) -> int:
    """Write every sample that is not there yet; return how many that were. Blocks.

    Raises:
        OSError: as the file system says.
    """
    written = 0
    for name, content in sample_files().items():
        path = directory / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written += 1
    return written


def _table() -> str:
    rows = (
        f"2025-{number:02},{energy},{energy * 0.082:.2f}" for number, energy in enumerate(_SOLAR_KWH, 1)
    )
    return "\n".join(("month,energy_kwh,feed_in_eur", *rows)) + "\n"


def _chart() -> bytes:
    """Draw the table as a bar chart, a PNG of 8-bit RGB."""
    width = len(_MONTHS) * (_BAR_WIDTH + _GAP) + _GAP
    rows = bytearray()
    for row in range(_PLOT_HEIGHT):
        level_kwh = _SCALE_KWH * (_PLOT_HEIGHT - row) / _PLOT_HEIGHT
        paper = _LINE if row % (_PLOT_HEIGHT // 5) == 0 else _PAPER
        rows.append(0)  # filter type of the scan line: none
        rows += paper * _GAP
        for energy in _SOLAR_KWH:
            rows += (_BAR if energy >= level_kwh else paper) * _BAR_WIDTH + paper * _GAP
    header = struct.pack(">IIBBBBB", width, _PLOT_HEIGHT, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _document() -> bytes:
    """Return a PDF of one page."""
    lines = ("Welcome to exaifs", "This page came through a mount,", "out of a bucket, into your reader.")
    shown = " ".join(f"({line}) Tj 0 -32 Td" for line in lines)
    content = f"BT /F1 24 Tf 72 720 Td {shown} ET".encode("ascii")
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Font << /F1 5 0 R >> >>",
    )
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table_at = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\n" % (len(objects) + 1)
    out += b"startxref\n%d\n%%%%EOF\n" % table_at
    return bytes(out)
