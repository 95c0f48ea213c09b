"""Programs as people run them, and what each leaves that can be compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Program:
    """A script for bash, run in an empty directory; `$SOURCE` is a tree outside of the mount.

    Running it once more in an empty directory leaves the same.
    """

    name: str
    script: str
    check: str = ""
    """Afterwards: must succeed, and print the same everywhere."""
    unlike: tuple[str, ...] = ()
    """Files that hold inode numbers or times, and so differ."""
    passing: tuple[bytes, ...] = ()
    """What files hold that are there only between two steps."""
    in_place: tuple[str, ...] = ()
    """Files of which any state may be left when the script fails, as it changes them in place."""
    is_whole: str = "true"
    """Must succeed on what is left then: those files go together."""


_GIT = """
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=maintenance.auto GIT_CONFIG_VALUE_0=false
"""

PROGRAMS = [
    Program("cp", 'cp -a "$SOURCE" tree && cp -a tree again && rm -r tree/sub'),
    Program("rsync", 'rsync -a "$SOURCE/" tree && rsync -a --delete "$SOURCE/sub/" tree/sub'),
    Program("tar", 'tar -C "$SOURCE" -cf all.tar . && mkdir tree && tar -C tree -xf all.tar'),
    Program(
        "git",
        _GIT + 'cp "$SOURCE"/[0-9] . && git init -q -b main . && git add . && git commit -qm one && '
        "echo two >> 1 && git commit -qam two && git mv 2 moved && git commit -qm three",
        check=_GIT + "git fsck --strict 2>&1 && git rev-parse HEAD && git status --porcelain",
        unlike=(".git/index",),
    ),
    Program(
        "sqlite",
        "sqlite3 db 'CREATE TABLE t (n INTEGER PRIMARY KEY, x TEXT)' && "
        "for i in 1 2 3 4 5; do "
        'sqlite3 db "INSERT INTO t (x) VALUES (hex(zeroblob($i * 500)))" || exit; done',
        check="sqlite3 db 'PRAGMA integrity_check; SELECT n, length(x) FROM t ORDER BY n'",
        unlike=("db",),
        in_place=("db", "db-journal"),
        is_whole="test ! -e db || test \"$(sqlite3 db 'PRAGMA integrity_check' 2>&1)\" = ok",
    ),
    Program(
        "editor",
        'cp "$SOURCE/1" text && for i in 1 2 3; do cp text text.bak && echo "line $i" > .text.swp && '
        "{ cat text.bak; echo $i; } > .text.new && mv .text.new text && rm .text.swp || exit; done",
        passing=(b"line 1\n", b"line 2\n", b"line 3\n"),
    ),
    Program(
        "moves",
        'cp -r "$SOURCE" a && mv a b && mv b/sub b/other && mkdir c && mv b c/b && mv c/b/1 c/1 && '
        "rm -r c/b/other",
    ),
]
