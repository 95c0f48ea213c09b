"""A disk that fails on demand, for one process: `faulty.c`, loaded before the C library."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest


class FaultyDisk:
    """Makes calls of one process fail for files below a directory.

    Args:
        directory: absolute, without symbolic links.
        scratch: a directory outside for the library; skips loudly where there is no C compiler.
    """

    def __init__(self, directory: Path, scratch: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("NOT TESTED: a disk that fails; there is no C compiler to make one")
        library = scratch / "faulty.so"
        source = Path(__file__).with_name("faulty.c")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
            check=True,
            timeout=60,
        )
        self._control = scratch / "faulty.control"
        self.fail()
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAULTY_CONTROL": str(self._control),
            "FAULTY_DIRECTORY": str(directory),
        }
        """For the process."""

    def fail(self, *, reads: int = 0, writes: int = 0) -> None:
        """Have what reads, and what writes, fail with these errnos from now on; 0: work."""
        with self._control.open("r+b" if self._control.exists() else "wb") as file:
            file.write(struct.pack("ii", reads, writes))
