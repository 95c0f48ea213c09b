"""`exaifs gc` against the embedded Supabase."""

from __future__ import annotations

import contextlib
import os
import pty
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from exaifs.remote.wire import quote_key
from tests.cli.support import Result, clean_environment, exaifs

pytestmark = pytest.mark.embedded

PAST = "2020-01-01T00:00:00Z"


class Project:
    """A bucket, and the command."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.conversation = f"c-{secrets.token_hex(6)}"
        self._bucket = environment["FILE_STORAGE_BUCKET"]
        key = environment["SUPABASE_SERVICE_ROLE_KEY"]
        headers = {"apikey": key, "Authorization": f"Bearer {key}"}
        self.client = httpx.Client(
            base_url=environment["SUPABASE_URL"], headers=headers, timeout=120, trust_env=False
        )

    def put(self, key: str, data: bytes = b"x", **metadata: Any) -> None:
        """Upload as any client does; then set metadata, as programs do."""
        path = f"/storage/v1/object/{self._bucket}/{quote_key(key)}"
        headers = {"content-type": "text/plain", "x-upsert": "true"}
        self.client.put(path, content=data, headers=headers).raise_for_status()
        if metadata:
            self.rpc(
                "exaifs_annotate", p_key=key, p_fields=httpx.Request("GET", "x:", json=metadata).content
            )

    def rpc(self, function: str, **params: Any) -> Any:
        """Call an SQL function."""
        fields = {
            name: value.decode() if isinstance(value, bytes) else value for name, value in params.items()
        }
        answer = self.client.post(f"/rest/v1/rpc/{function}", json={"p_bucket": self._bucket, **fields})
        return answer.raise_for_status().json()

    def keys(self) -> set[str]:
        """Return what is in the bucket."""
        page = self.rpc("exaifs_list_tree", p_prefix="", p_after="", p_limit=1000)
        return {record["key"] for record in page["records"]}

    def delete_conversation(self) -> None:
        """Delete the conversation's row."""
        where = {"continuation_id": f"eq.{self.conversation}"}
        self.client.delete("/rest/v1/conversations", params=where).raise_for_status()

    def run(self, *arguments: str) -> Result:
        """Run `exaifs gc`."""
        return exaifs("gc", *arguments, env=self.environment)


@pytest.fixture
def project(fresh_bucket: dict[str, str]) -> Iterator[Project]:
    """Make a bucket with one file of every kind."""
    project = Project(fresh_bucket)
    project.put(f"uploads/{project.conversation}/left", b"1")
    project.delete_conversation()
    project.put("expired", b"22", expires_at=PAST)
    project.put("cache/1/orphan", b"333", file_type="cache")
    project.put("nonsense", b"4444", expires_at="soon")
    project.put("mine =C3=A9", b"55555")
    with contextlib.closing(project.client):
        yield project


ALL = ["queued", "expired", "orphan"]


def test_dry_run_changes_nothing(project: Project) -> None:
    """Shows what would go, by kind, with names and bytes; young orphans are left."""
    before = project.keys()
    shown = project.run("--dry-run")
    assert shown.code == 0, shown
    for text in ("uploads/", "expired: 1 file (2 bytes)", PAST, "soon", "nothing was changed"):
        assert text in shown.output
    assert "orphan" not in shown.stdout
    assert "mine" not in shown.stdout
    found = project.run("--dry-run", "--older-than", "0", "--json").json
    assert [kind for kind in ALL if found["found"][kind]["count"] == 1] == ALL
    assert (found["dry_run"], found["deleted"]["count"], found["found"]["orphan"]["bytes"]) == (True, 0, 3)
    assert project.keys() == before


def test_yes_deletes(project: Project) -> None:
    """What was found goes; what is nobody's business stays; the second run finds nothing."""
    done = project.run("--older-than", "0", "--yes", "--json")
    assert done.code == 0, done
    assert done.json["deleted"] == {"count": 3, "bytes": 6}
    results = {finding["kind"]: finding["result"] for finding in done.json["findings"]}
    assert results == {**dict.fromkeys(ALL, "deleted"), "malformed": "found"}
    assert project.keys() == {"nonsense", "mine =C3=A9"}
    again = project.run("--older-than", "0", "--yes")
    assert (again.code, "deleted 0 files" in again.stdout) == (0, True)


def test_without_a_terminal_nobody_is_asked(project: Project) -> None:
    """Without --yes nothing is deleted, and the exit code is that of wrong usage."""
    before = project.keys()
    for arguments in ((), ("--json",)):
        refused = project.run(*arguments)
        assert (refused.code, "--yes" in refused.stderr) == (2, True)
    assert project.keys() == before


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0)])
def test_a_terminal_asks(project: Project, answer: str, code: int) -> None:
    """It shows what would go, and deletes only after a yes."""
    ours, theirs = pty.openpty()
    shown = b""
    answered = False
    with (
        open(ours, "r+b", buffering=0) as screen,  # noqa: PTH123 - a descriptor, not a path
        subprocess.Popen(
            [sys.executable, "-m", "exaifs", "gc", "--older-than", "0"],
            env=clean_environment({**project.environment, "TERM": "xterm-256color"}),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as process,
    ):
        os.close(theirs)
        # EIO is a terminal's end of file.
        with contextlib.suppress(OSError):
            while chunk := screen.read(4096):
                shown += chunk
                # It may come in pieces.
                if not answered and b"[y/N]" in shown:
                    assert b"orphans" in shown
                    screen.write(answer.encode())
                    answered = True
        assert process.wait(120) == code
    assert len(project.keys()) == (2 if code == 0 else 5)


def test_problems(fresh_bucket: dict[str, str]) -> None:
    """A wrong flag, a server that is away: one line, and the usual exit codes."""
    for days in ("-1", "nan", "inf"):
        assert exaifs("gc", "--older-than", days, env=fresh_bucket).code == 2
    away = {**fresh_bucket, "SUPABASE_URL": "http://127.0.0.1:9", "EXAIFS_REQUEST_TIMEOUT_S": "0.5"}
    assert exaifs("gc", "--yes", env=away).code == 3
