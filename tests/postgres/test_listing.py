"""The listing functions, against a plain reading of all keys."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.support.postgres import BUCKET, Project, call, put

PAGES = (1, 2, 3, 1000)

# Few characters, all that sort around the slash, so that siblings and page edges meet often.
keys_strategy = st.lists(
    st.text("a/.-0A", min_size=1, max_size=7).filter(lambda key: key != "/" * len(key) or len(key) < 4),
    max_size=14,
)


def one_level(keys: set[str], prefix: str) -> tuple[list[str], list[str]]:
    """Return what one level below a prefix holds: keys, and names of folders."""
    rests = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    files = sorted(prefix + rest for rest in rests if "/" not in rest)
    folders = sorted({rest.split("/")[0] for rest in rests if "/" in rest}, key=lambda name: name + "/")
    return files, folders


def walk(connection: psycopg.Connection[object], prefix: str, limit: int) -> tuple[list[str], list[str]]:
    """List one level page by page."""
    files, folders, after = list[str](), list[str](), ""
    while True:
        page = call(connection, "exaifs_list_directory", BUCKET, prefix, after, limit)
        found = [record["key"] for record in page["records"]]
        names = [folder["name"] for folder in page["folders"]]
        assert len(found) + len(names) <= limit
        files += found
        folders += names
        if page["next"] is None:
            return files, folders
        assert page["next"] > after
        after = page["next"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(keys=["a", "a.txt", "a-1", "a/", "a/b", "a0", "a//b", "/a", "//"])
@given(keys=keys_strategy)
def test_every_level_page_by_page(project: Project, keys: list[str]) -> None:
    """At every page size, each level holds each of its entries exactly once, in key order."""
    there = set(keys)
    prefixes = {""} | {key[: place + 1] for key in there for place in range(len(key)) if key[place] == "/"}
    with project.as_service() as connection:
        for key in there:
            put(connection, key)
        for prefix in sorted(prefixes):
            for limit in PAGES:
                assert walk(connection, prefix, limit) == one_level(there, prefix)
        connection.rollback()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=keys_strategy)
def test_tree_page_by_page(project: Project, keys: list[str]) -> None:
    """A tree holds every key that starts with the prefix, once, in key order."""
    with project.as_service() as connection:
        for key in set(keys):
            put(connection, key)
        for prefix in ("", "a", "a/", "/", "."):
            for limit in PAGES:
                found, after = list[str](), ""
                while True:
                    page = call(connection, "exaifs_list_tree", BUCKET, prefix, after, limit)
                    found += [record["key"] for record in page["records"]]
                    if page["next"] is None:
                        break
                    after = page["next"]
                assert found == sorted(key for key in set(keys) if key.startswith(prefix))
        connection.rollback()


def test_wildcards_are_literal(project: Project) -> None:
    """Characters that LIKE knows stand for themselves."""
    for key in ("a_b/x", "aXb/x", "a%/x", "a*/x"):
        project.put(key)
    for prefix in ("a_b/", "a%/", "a*/"):
        found = project.rpc("exaifs_list_directory", BUCKET, prefix, "", 10)["records"]
        assert [record["key"] for record in found] == [f"{prefix}x"]


def test_other_buckets_do_not_show(project: Project) -> None:
    """A listing ends at its bucket."""
    project.put("a/x", bucket="other")
    project.put("b", bucket="generated-files")
    assert project.rpc("exaifs_list_directory", BUCKET, "", "", 10) == {
        "records": [],
        "folders": [],
        "next": None,
    }
    assert project.rpc("exaifs_list_tree", BUCKET, "", "", 10) == {"records": [], "next": None}


def test_stat_order_and_absence(project: Project) -> None:
    """Stat answers for what is there, in the order asked; folders are no objects."""
    for key in ("b", "a", "dir/x"):
        project.put(key)
    found = project.rpc("exaifs_stat", BUCKET, ["b", "dir", "dir/", "a", "B", "nothing"])["records"]
    assert [record["key"] for record in found] == ["b", "a"]
    assert project.rpc("exaifs_stat", BUCKET, []) == {"records": []}


@pytest.mark.slow
def test_a_big_folder_costs_one_jump(project: Project) -> None:
    """Beside a folder of 30,000 objects a listing reads its own entries, not the folder's."""
    fill = """
        ALTER TABLE storage.objects DISABLE TRIGGER exaifs_on_object;
        INSERT INTO storage.objects (bucket_id, name, version)
            SELECT 'user-files', 'p/big/' || n, n::text FROM generate_series(1, 30000) n;
        INSERT INTO storage.objects (bucket_id, name, version)
            SELECT 'user-files', 'p/file' || n, n::text FROM generate_series(1, 500) n;
        ALTER TABLE storage.objects ENABLE TRIGGER exaifs_on_object;
    """
    project.admin.execute(fill)
    with psycopg.connect(project.address) as connection:
        page = call(connection, "exaifs_list_directory", BUCKET, "p/", "", 1000)
        assert (len(page["records"]), len(page["folders"]), page["next"]) == (500, 1, None)
        read = connection.execute(
            "SELECT sum(pg_stat_get_xact_tuples_fetched(relid) + seq_tup_read + idx_tup_fetch)"
            " FROM pg_stat_xact_all_tables WHERE schemaname = 'storage' AND relname = 'objects'"
        ).fetchone()
    assert read is not None
    assert 1000 <= read[0] < 5000
