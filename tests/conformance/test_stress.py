"""Sixty-four processes doing everything at once; part of the campaign only."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.mounts import within
from tests.support.twins import Twins, tree

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

SECONDS = float(os.environ.get("EXAIFS_STRESS_S", "0"))
PROCESSES = 64

WORKER = """
import errno, mmap, os, random, sys, time
base, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rng = random.Random(seed)
# What a local file system would say too, when others change the same names at the same time.
fair = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP,
        errno.ESTALE, errno.ENODATA}
dirs = ["d1", "d2", "d1/d3", "d2/d3"]
def name():
    return f"{base}/{rng.choice(dirs)}/f{rng.randrange(12)}"
def write(): open(name(), "wb").write(rng.randbytes(rng.choice((0, 100, 50_000))))
def append(): open(name(), "ab").write(b"line\\n")
def read(): open(name(), "rb").read()
def rename(): os.rename(name(), name())
def unlink(): os.unlink(name())
def truncate(): os.truncate(name(), rng.randrange(10_000))
def listing(): [os.lstat(entry.path) for entry in os.scandir(f"{base}/{rng.choice(dirs)}")]
def mkdir(): os.mkdir(f"{base}/{rng.choice(dirs)}")
def rmdir(): os.rmdir(f"{base}/{rng.choice(dirs)}")
def rename_dir(): os.rename(f"{base}/d1", f"{base}/d2")
def chmod(): os.chmod(name(), rng.choice((0o600, 0o644)))
def xattr(): os.setxattr(name(), "user.x", rng.randbytes(20))
def link(): os.symlink("f1", name())
def mapped():
    with open(name(), "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:1] = b"m"
def held():
    with open(name(), "r+b", buffering=0) as file:
        file.write(b"held"); os.fsync(file.fileno()); file.seek(0); file.read()
calls = [write] * 4 + [append] * 3 + [read] * 4 + [rename] * 3 + [unlink] * 2 + [listing, mkdir, held] * 2
calls += [truncate, rmdir, rename_dir, chmod, xattr, link, mapped]
end = time.monotonic() + seconds
done = 0
while time.monotonic() < end:
    call = rng.choice(calls)
    try:
        call()
    except ValueError:
        pass  # an empty file cannot be mapped
    except OSError as exc:
        if exc.errno not in fair:
            print(call.__name__, exc)
    done += 1
print("done", done > 0)
"""


@pytest.mark.skipif(SECONDS == 0, reason="EXAIFS_STRESS_S says for how many seconds; make conformance does")
@pytest.mark.timeout(SECONDS + 900)
def test_sixty_four_processes(twins: Twins) -> None:
    """No deadlock, no error that a local file system would not give, and the same tree after a remount."""
    for name in ("d1", "d2"):
        within(120, (twins.remote / name).mkdir)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(twins.remote), str(seed), str(SECONDS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(PROCESSES)
    ]
    try:
        outputs = within(SECONDS + 200, lambda: [worker.communicate()[0] for worker in workers])
    finally:
        for worker in workers:
            worker.kill()
    assert {line for output in outputs for line in output.splitlines()} == {"done True"}
    before = within(120, lambda: tree(twins.remote))
    twins.mount.restart()
    assert within(120, lambda: tree(twins.remote)) == before
