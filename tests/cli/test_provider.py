"""`exaifs provider` against the embedded Supabase and an honest provider."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.support import Result, exaifs
from tests.providers.emulator import KEY, Answer, Clock, ProviderServer, running
from tests.providers.world import CONTRACTS, Providers

pytestmark = pytest.mark.embedded


class Project:
    """A bucket, a provider, and the command."""

    def __init__(self, environment: dict[str, str], providers: Providers) -> None:
        self._environment = {**environment, "EXAIFS_PROVIDERS_FILE": str(providers.path)}
        key = environment["SUPABASE_SERVICE_ROLE_KEY"]
        self._headers = {"apikey": key, "Authorization": f"Bearer {key}", "x-upsert": "true"}
        self._objects = (
            f"{environment['SUPABASE_URL']}/storage/v1/object/{environment['FILE_STORAGE_BUCKET']}/"
        )

    def put(self, name: str, data: bytes) -> None:
        """Upload as any client does."""
        headers = {**self._headers, "content-type": "text/plain"}
        url = self._objects + name
        httpx.put(url, content=data, headers=headers, timeout=120, trust_env=False).raise_for_status()

    def run(self, *arguments: str) -> Result:
        """Run `exaifs provider`; no output ever holds a key."""
        result = exaifs("provider", *arguments, env=self._environment)
        assert KEY not in result.output
        return result


@pytest.fixture
def kimi() -> Iterator[ProviderServer]:
    """A provider."""
    with running(ProviderServer(CONTRACTS["kimi"]())) as server:
        yield server


@pytest.fixture
def project(fresh_bucket: dict[str, str], kimi: ProviderServer, tmp_path: Path) -> Project:
    """A project with that provider turned on."""
    providers = Providers(tmp_path, Clock())
    providers.add("kimi", kimi, account=f"team-{fresh_bucket['FILE_STORAGE_BUCKET'][-8:]}")
    return Project(fresh_bucket, providers)


def test_list_shows_what_is_turned_on(project: Project, kimi: ProviderServer) -> None:
    """Names, addresses and whether a key is set; no request."""
    shown = project.run("list", "--json").json["providers"]
    assert [(one["name"], one["key"], one["base_url"]) for one in shown] == [
        ("kimi", "set", f"{kimi.url}/v1")
    ]
    assert "kimi" in project.run("list").stdout
    assert kimi.requests == 0


def test_id_check_forget(project: Project, kimi: ProviderServer) -> None:
    """An id is made once, checked, forgotten, and made again."""
    project.put("dir/a.txt", b"content")
    first = project.run("id", "kimi", "dir/a.txt")
    assert (first.code, first.stderr) == (0, "")
    file_id = first.stdout.strip()
    assert kimi.files[file_id].data == b"content"
    assert project.run("id", "kimi", "/dir/a.txt", "--json").json["id"] == file_id
    assert kimi.counts["upload"] == 1
    checked = project.run("check", "kimi", "dir/a.txt", "--json").json
    assert checked["files"] == [{"path": "dir/a.txt", "id": file_id, "state": "alive"}]
    kimi.files.clear()
    gone = project.run("check", "kimi", "dir/a.txt")
    assert gone.code == 1
    assert gone.stdout.startswith("gone")
    assert project.run("id", "kimi", "dir/a.txt", "--refresh").stdout.strip() in kimi.files
    assert project.run("forget", "kimi", "dir/a.txt").code == 0
    assert project.run("forget", "kimi", "dir/a.txt").code == 1
    assert project.run("check", "kimi", "dir/a.txt", "--json").json["files"][0]["state"] == "none"


def test_prune(project: Project, kimi: ProviderServer) -> None:
    """What no file has any more is shown, then deleted; nothing else is touched."""
    project.put("kept.txt", b"kept")
    project.put("changed.txt", b"before")
    kept = project.run("id", "kimi", "kept.txt").stdout.strip()
    old = project.run("id", "kimi", "changed.txt").stdout.strip()
    foreign = kimi.add("", filename="f", data=b"x", purpose="file-extract", mime_type="a/b").id
    project.put("changed.txt", b"after, longer")
    assert project.run("prune", "kimi", "--json").json["deleted"] == []  # too young
    shown = project.run("prune", "kimi", "--dry-run", "--older-than", "0", "--json").json
    assert [file["id"] for file in shown["deleted"]] == [old]
    assert set(kimi.files) == {kept, old, foreign}
    kimi.fail("delete", Answer(500, {}))
    failed = project.run("prune", "kimi", "--older-than", "0", "--json")
    assert (failed.code, [file["id"] for file in failed.json["failed"]]) == (1, [old])
    pruned = project.run("prune", "kimi", "--older-than", "0")
    assert (pruned.code, pruned.stdout.split()[0]) == (0, old)
    assert set(kimi.files) == {kept, foreign}
    assert project.run("prune", "kimi", "--older-than", "0", "--json").json["deleted"] == []


def test_problems_are_one_line(project: Project, kimi: ProviderServer) -> None:
    """A refused key, a missing file, a provider that is not turned on: what happened and what to do."""
    assert project.run("check", "kimi").stdout == "kimi takes the key\n"
    kimi.keys = {"another"}
    refused = project.run("check", "kimi")
    assert refused.code == 1
    assert "401" in refused.complaint
    assert "no file 'missing'" in project.run("id", "kimi", "missing").complaint
    unknown = project.run("id", "openai", "x")
    assert (unknown.code, "not turned on" in unknown.complaint) == (2, True)
    for hours in ("-1", "nan", "inf", "1e9"):
        assert project.run("prune", "kimi", "--older-than", hours).code == 2
    off = exaifs("provider", "list")
    assert (off.code, "EXAIFS_PROVIDERS" in off.complaint) == (2, True)
