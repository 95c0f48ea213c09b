"""Conversations through a real mount: files written there are linked, and vanish with the conversation."""

from __future__ import annotations

import contextlib
import secrets
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.mounts import MountedDaemon, wait_until


class Rest:
    """The project's database, as programs see it."""

    def __init__(self, environment: dict[str, str]) -> None:
        key = environment["SUPABASE_SERVICE_ROLE_KEY"]
        self.client = httpx.Client(
            base_url=f"{environment['SUPABASE_URL']}/rest/v1",
            headers={"apikey": key, "Authorization": f"Bearer {key}"},
            timeout=120,
            trust_env=False,
        )

    def linked(self, conversation: str) -> set[str]:
        """Return the paths of the files of a conversation."""
        query = {
            "select": "files(storage_path),conversations!inner(continuation_id)",
            "conversations.continuation_id": f"eq.{conversation}",
        }
        rows: list[dict[str, Any]] = (
            self.client.get("/conversation_files", params=query).raise_for_status().json()
        )
        return {row["files"]["storage_path"] for row in rows}

    def delete(self, conversation: str) -> None:
        """Delete a conversation."""
        where = {"continuation_id": f"eq.{conversation}"}
        self.client.delete("/conversations", params=where).raise_for_status()


@pytest.fixture
def rest(mount_environment: dict[str, str]) -> Iterator[Rest]:
    """The database."""
    rest = Rest(mount_environment)
    with contextlib.closing(rest.client):
        yield rest


def test_files_come_and_go_with_their_conversation(mount: MountedDaemon, rest: Rest) -> None:
    """Written there it is linked; deleting the conversation's row empties the mount within seconds."""
    one, two = (f"c-{secrets.token_hex(6)}" for _ in range(2))
    mount.sh(f"mkdir -p uploads/{one}/sub uploads/{two} keep")
    mount.sh(f"echo a > uploads/{one}/a; echo b > uploads/{one}/sub/b; echo c > uploads/{one}/c")
    mount.sh(f"mv uploads/{one}/c keep/c; echo d > uploads/{one}/d; mv uploads/{one}/d uploads/{two}/d")
    assert rest.linked(one) == {f"uploads/{one}/a", f"uploads/{one}/sub/b"}
    assert rest.linked(two) == {f"uploads/{two}/d"}
    rest.delete(one)
    wait_until(
        lambda: mount.sh("ls uploads") == f"{two}\n", 120, "the directory of the conversation vanishes"
    )
    assert mount.sh(f"cat keep/c uploads/{two}/d") == "c\nd\n"
    # The kernel, which knows the name, is told by another task than what lists the directory.
    wait_until(
        lambda: mount.sh(f"ls uploads/{one}/a 2>&1 || true").endswith("No such file or directory\n"),
        120,
        "the kernel forgets the file",
    )


def test_a_file_that_is_open_is_not_lost(mount: MountedDaemon, rest: Rest) -> None:
    """Its conversation is deleted while it is written: closed, it is in the mount and in a conversation."""
    name = f"c-{secrets.token_hex(6)}"
    mount.sh(f"mkdir -p uploads/{name}; echo old > uploads/{name}/a; echo x > uploads/{name}/b")
    script = (
        "import sys; file = open(sys.argv[1], 'r+b', 0); file.write(b'new');"
        "print('written', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, mount.path / "uploads" / name / "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        try:
            assert writer.stdout is not None
            assert select.select([writer.stdout], [], [], 120)[0]
            rest.delete(name)
            # The directory goes as well: nothing in it is in the bucket.
            wait_until(lambda: mount.sh("ls uploads") == "", 120, "the conversation's directory vanishes")
            writer.communicate(timeout=120)
        except BaseException:
            mount.kill9()
            writer.kill()
            raise
    # The directory that went comes back with the feed.
    wait_until(
        lambda: mount.sh(f"cat uploads/{name}/a", check=False) == "new\n", 120, "the file is in the mount"
    )
    assert rest.linked(name) == {f"uploads/{name}/a"}
