"""Programs that people run: the mount must look the same afterwards as a local directory.

Whatever a program prints and leaves behind is compared: names, modes, owners, link counts, sizes, bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.mount.test_posix_files import _all_end, _python
from tests.support.mounts import wait_until, within
from tests.support.twins import Twins, tree

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

SOURCE = """mkdir -p src/a/b src/empty; printf one > src/1; printf two > src/a/2
  head -c 300000 /dev/zero > src/a/b/big
  printf '#!/bin/sh\\necho run' > src/run; chmod 755 src/run; chmod 600 src/1
  ln -s a/2 src/link; ln -s none src/dangling
  chmod 2775 src/a; touch -d '2001-02-03 04:05:06.789 UTC' src/1 src/a/2; """


def _needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")


def test_cp_mv_tar_find(twins: Twins) -> None:
    """What cp -a, mv, tar and find leave, with everything they keep."""
    twins.sh(SOURCE)
    twins.sh("cp -a src copy; cp -rp src/a copy/again; stat -c '%n %Y %a' copy/1 copy/a/2; copy/run")
    twins.sh("mv copy moved; mv moved/1 moved/a/2; mkdir into; mv moved src/run into; find . | sort")
    twins.sh(
        "tar cf all.tar --sort=name --mtime=@0 --numeric-owner into; tar tvf all.tar | sort; rm all.tar"
    )
    twins.sh(
        "tar c src | (mkdir out; tar xp -C out); diff -r src out/src && echo same; "
        "ls -l out/src/1 | cut -c1-10"
    )
    twins.sh(
        "find . -type f -size +100k | sort; grep -r two . | sort; "
        "find . -newer src/1 -type l | sort; du -s --apparent-size src/1"
    )
    twins.sh(
        "find . -depth -name b -exec rm -r {} +; find . -perm 600 | sort; "
        "find . -type d -links 2 | sort; rm -r src into out"
    )


def test_mknod_makes_files(twins: Twins, tmp_path: Path) -> None:
    """`mknod(2)` of a regular file, which is how `tar --xattrs` begins one that has attributes."""
    twins.sh(
        'python3 -c \'import os; os.umask(0o027); os.mknod("made"); os.mknod("mode", 0o100640)\'; '
        "stat -c '%n %F %s %a' *; cat made; echo more > made; cat made; "
        "python3 -c 'import os; os.mknod(\"made\")' 2>&1 | tail -1"
    )
    _needs("tar", "setfattr")
    (tmp_path / "marked").write_bytes(b"marked")
    os.setxattr(tmp_path / "marked", "user.note", b"a note")
    archive = tmp_path / "marked.tar"
    subprocess.run(["tar", "--xattrs", "-C", tmp_path, "-cf", archive, "marked"], check=True, timeout=120)
    twins.sh(
        f"tar --xattrs -xf {archive}; cat marked; getfattr -n user.note --only-values marked; rm marked"
    )


def test_dd_and_odd_blocks(twins: Twins) -> None:
    """Odd block sizes, holes and conv=notrunc of dd."""
    twins.sh("seq 20000 > in; dd if=in of=out bs=777 status=none; cmp in out && echo same")
    twins.sh("dd if=in of=out bs=13 seek=100 skip=7 count=50 conv=notrunc status=none; sha256sum out")
    twins.sh(
        "dd if=in of=sparse bs=1000 seek=300 count=1 status=none; "
        "dd if=out of=out2 bs=5000 iflag=direct status=none || true; rm -f out2; sha256sum sparse"
    )
    twins.sh(
        "head -c 100001 /dev/zero | tr '\\0' x | dd of=big bs=99991 oflag=sync status=none; "
        "split -b 33333 big part; cat part* | cmp - big && echo same"
    )


def test_rsync_twice(twins: Twins) -> None:
    """A copy by rsync -a transfers everything once, and nothing the second time."""
    _needs("rsync")
    twins.sh(SOURCE)
    assert "src/a/b/big" in twins.sh("mkdir copy; rsync -a --itemize-changes src copy | sort")
    assert twins.sh("rsync -a --itemize-changes src copy") == ""
    assert twins.sh("printf changed > src/a/2; rsync -a --itemize-changes src copy | sort").count("\n") == 1
    assert (
        twins.sh(
            "rm -r src/a/b; rsync -a --delete --itemize-changes src copy | grep deleting | sort"
        ).count("\n")
        == 2
    )
    assert twins.sh("rsync -a --checksum --inplace --itemize-changes src/ copy/src/") == ""


# Newer ones tidy in the background, where nobody waits for it, and a directory may be removed under it.
GIT = (
    "git -c user.name=A -c user.email=a@b -c init.defaultBranch=main -c gc.auto=0 -c maintenance.auto=false"
)


@pytest.mark.slow
def test_git(twins: Twins) -> None:
    """After init, add, commit, branch, merge, checkout, clone, fsck, gc: the repository is sound."""
    _needs("git")
    script = f"""g() {{ {GIT} "$@"; }}
      export GIT_COMMITTER_DATE=2001-01-01T00:00:00Z GIT_AUTHOR_DATE=2001-01-01T00:00:00Z
      mkdir repo; cd repo; g init -q; for i in 1 2 3 4 5; do echo $i > f$i; done; mkdir d
      echo x > d/x; g add .
      g commit -qm one; g checkout -qb side; echo side > f1; g commit -qam side; g checkout -q main
      echo main > f2; g commit -qam main; g merge -q side -m merge
      git log --oneline | sed 's/ .*//' | wc -l
      cat f1 f2; g mv f3 d/f3; g commit -qm move; g status --short; g gc -q
      g fsck --strict 2>&1 | grep -v dangling || true
      cd ..; git clone -q repo clone; cd clone; git status --short; git rev-parse HEAD; cat d/f3
      rm -rf ../clone ../repo"""
    assert twins.sh(script, timeout_s=240)


@pytest.mark.parametrize("mode", ["delete", "truncate", "wal"])
def test_sqlite(twins: Twins, mode: str) -> None:
    """A database in each journal mode: commits, rollbacks and a second connection; sound at the end."""

    def use(directory: Path) -> list[object]:
        path = directory / f"{mode}.db"
        with sqlite3.connect(path) as first:
            found: list[object] = [first.execute(f"PRAGMA journal_mode={mode}").fetchone()]
            first.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
            first.commit()
            for number in range(5):
                first.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 500))
                first.commit()
            first.execute("DELETE FROM t WHERE n = 3")
            first.rollback()
            second = sqlite3.connect(path, timeout=1)
            found.append(second.execute("SELECT count(*) FROM t").fetchone())
            first.execute("BEGIN IMMEDIATE")
            try:
                second.execute("PRAGMA busy_timeout = 10")
                second.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as exc:
                found.append(str(exc))
            first.rollback()
            second.close()
        first.close()
        third = sqlite3.connect(path)
        found.append(third.execute("PRAGMA integrity_check").fetchone())
        found.append(third.execute("SELECT count(*) FROM t").fetchone())
        third.close()
        return [*found, sorted(entry.name for entry in directory.iterdir())]

    twins.agree(use)


def test_how_editors_save(twins: Twins) -> None:
    """They rename the old file away, copy a backup, write in place, or rename a new file over."""

    def save(directory: Path) -> list[object]:
        path = directory / "text"
        path.write_text("first\n")
        path.chmod(0o640)
        # As vim does with backupcopy=no.
        path.rename(directory / "text~")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        os.write(fd, b"vim\n")
        os.fsync(fd)
        os.close(fd)
        path.chmod(0o640)
        (directory / "text~").unlink()
        # emacs: a lock that is a dangling link, a copied backup, the file written in place
        (directory / ".#text").symlink_to("me@host.1:2")
        shutil.copy2(path, directory / "text~")
        path.write_text("emacs\n")
        (directory / ".#text").unlink()
        # VS Code: in place, after truncation
        with path.open("r+b", buffering=0) as file:
            file.truncate(0)
            file.write(b"code\n")
        # gedit, sed -i and many others: a new file beside, renamed over while it is still open
        with (directory / ".new").open("wb") as file:
            file.write(b"gedit\n")
            file.flush()
            os.fsync(file.fileno())
            (directory / ".new").rename(path)
        return [path.read_text(), sorted(entry.name for entry in directory.iterdir())]

    twins.agree(save)
    twins.sh(
        "sed -i s/gedit/sed/ text; cat text; printf 'x\\n' | tee -a text; "
        "patch -s text <<< $'1c1\\n< sed\\n---\\n> patched' || true; rm -f text.orig text.rej"
    )


def test_vim_itself(twins: Twins) -> None:
    """With swap file, backup and undo file."""
    _needs("vim")
    twins.sh(
        "printf 'a\\nb\\n' > f; "
        "vim -u NONE -es -c 'set backup undofile' -c '%s/a/changed/' -c wq f; cat f; rm -f .f.un~",
        timeout_s=240,
    )


def test_python_tools(twins: Twins, tmp_path: Path) -> None:
    """zipfile, shutil.copytree, and pip install --target of a wheel."""
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/__init__.py", "NAME = 'thing'\n")
        archive.writestr(
            "thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
        )
        archive.writestr(
            "thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            "thing-1.0.dist-info/RECORD",
            "thing/__init__.py,,\nthing-1.0.dist-info/METADATA,,\nthing-1.0.dist-info/WHEEL,,\nthing-1.0.dist-info/RECORD,,\n",
        )
    python = f"{sys.executable} -I"
    twins.sh(
        f"{SOURCE} {python} -m zipfile -c a.zip src/1 src/a; {python} -m zipfile -t a.zip; "
        f"{python} -m zipfile -e a.zip out; rm a.zip; find out | sort"
    )
    twins.sh(
        f"{python} -c \"import shutil; shutil.copytree('src', 'tree', symlinks=True)\"; "
        "diff -r --no-dereference src tree && echo same"
    )
    twins.sh(
        f"{python} -m pip install -q --no-index --no-compile --disable-pip-version-check "
        f"--root-user-action=ignore --target lib {wheel}; "
        f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=lib {sys.executable} -c 'import thing; "
        "print(thing.NAME)'; cat lib/thing/__init__.py; rm -r lib",
        timeout_s=240,
    )


def test_tail_of_a_growing_file(twins: Twins) -> None:
    """What tail -f shows is what another process appends."""
    path = twins.remote / "log"
    within(120, lambda: path.write_text("0\n"))
    tail = subprocess.Popen(
        ["tail", "-f", "-s", "0.1", "-n", "+1", str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert tail.stdout is not None
        output = tail.stdout
        seen = [within(120, output.readline)]
        for number in range(1, 5):
            within(120, lambda n=number: _append(path, n))  # type: ignore[misc]  # bound now
            seen.append(within(120, output.readline))
    finally:
        tail.kill()
        tail.communicate(timeout=120)
    assert seen == [f"{number}\n" for number in range(5)]


def _append(path: Path, number: int) -> None:
    with path.open("a") as file:
        file.write(f"{number}\n")


def test_eight_processes(twins: Twins) -> None:
    """Four writers replace and append, four readers read: nobody sees a mixture, and nothing is lost."""
    writer = """
import os, sys
base, me = sys.argv[1], sys.argv[2]
for number in range(8):
    data = bytes([65 + number]) * 50_000
    with open(f"{base}/{me}.new", "wb") as file:
        file.write(data)
    os.rename(f"{base}/{me}.new", f"{base}/{me}")
    with open(f"{base}/log", "ab") as file:
        file.write(f"{me} {number}\\n".encode())
"""
    reader = """
import sys
base, me = sys.argv[1], sys.argv[2]
seen = 0
while seen < 25:
    try:
        with open(f"{base}/{me}", "rb") as file:
            data = file.read()
    except FileNotFoundError:
        continue
    seen += 1
    if len(data) != 50_000 or len(set(data)) != 1:
        print("torn", len(data), len(set(data)))
"""
    base = str(twins.remote)
    processes = [_python(writer, base, str(n)) for n in range(4)] + [
        _python(reader, base, str(n)) for n in range(4)
    ]
    assert within(120, lambda: _all_end(processes, 110)) == [b""] * 8
    lines = within(120, (twins.remote / "log").read_text).splitlines()
    assert sorted(lines) == sorted(f"{me} {number}" for me in range(4) for number in range(8))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_programs(twins: Twins, number: signal.Signals) -> None:
    """Programs that are killed at any moment leave a mount that works, and nothing half-written closed."""
    script = """
import os, sys
base = sys.argv[1]
open(f"{base}/started", "w").close()
number = 0
while True:
    number += 1
    with open(f"{base}/f{number % 7}", "wb") as file:
        file.write(b"x" * 100_000)
    os.rename(f"{base}/f{number % 7}", f"{base}/g{number % 5}")
    os.listdir(base)
"""
    started = twins.remote / "started"
    for wait_s in (0.05, 0.2, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(twins.remote)], stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: within(120, started.exists), 120, "the program works")
            time.sleep(wait_s)  # any moment will do
            process.send_signal(number)
            process.wait(120)
        finally:
            process.kill()
            process.wait(120)
        within(120, started.unlink)
    within(120, lambda: (twins.remote / "after").write_bytes(b"fine"))
    assert within(120, (twins.remote / "after").read_bytes) == b"fine"
    assert all(
        len(entry[5]) <= 100_000 for entry in within(120, lambda: tree(twins.remote)).values() if entry[5]
    )
