"""Applying the migrations: again, on projects of every kind, and what they leave open to whom."""

from __future__ import annotations

from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from exaifs.remote import schema
from tests.support.postgres import MIGRATOR, Project, migrate, put, run_script, upload_of

GIVEN_TABLE: LiteralString = """
CREATE TABLE file_metadata (
    file_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    original_filename VARCHAR(255) NOT NULL,
    file_size BIGINT NOT NULL,
    mime_type VARCHAR(100) NOT NULL,
    supabase_storage_path VARCHAR(500) NOT NULL,
    local_cache_path TEXT,
    file_hash VARCHAR(64) NOT NULL,
    provider_file_ids JSONB DEFAULT '{}',
    upload_date TIMESTAMPTZ DEFAULT now(),
    last_accessed TIMESTAMPTZ DEFAULT now(),
    access_count INTEGER DEFAULT 0,
    metadata JSONB DEFAULT '{}',
    created_at TIMESTAMPTZ DEFAULT now(),
    updated_at TIMESTAMPTZ DEFAULT now()
);
CREATE INDEX idx_file_metadata_file_hash ON file_metadata (file_hash);
ALTER TABLE file_metadata ENABLE ROW LEVEL SECURITY;
CREATE POLICY "everybody" ON file_metadata FOR ALL USING (true);
"""

EARLIER_TABLES: LiteralString = """
CREATE TYPE message_role AS ENUM ('user', 'assistant');
CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMPTZ, description TEXT);
CREATE TABLE conversations (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(), continuation_id TEXT UNIQUE NOT NULL, title TEXT
);
CREATE TABLE messages (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    conversation_id UUID REFERENCES conversations (id) ON DELETE CASCADE, role message_role, content TEXT
);
CREATE TABLE files (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(), storage_path TEXT UNIQUE, original_name TEXT
);
CREATE TABLE conversation_files (
    conversation_id UUID REFERENCES conversations (id) ON DELETE CASCADE,
    file_id UUID REFERENCES files (id) ON DELETE CASCADE, PRIMARY KEY (conversation_id, file_id)
);
INSERT INTO schema_version (version, description) VALUES (1, 'theirs'), (2, 'theirs too');
INSERT INTO conversations (continuation_id, title) VALUES ('c1', 'kept');
"""


def _as_migrator(project: Project, script: str) -> None:
    with psycopg.connect(project.address.replace("user=postgres", f"user={MIGRATOR}")) as connection:
        run_script(connection, script)


def _shape(project: Project) -> list[object]:
    """Everything that the migrations make, in a form that can be compared."""
    return project.admin.execute(
        "SELECT 'column', table_name || '.' || column_name,"
        " data_type || is_nullable || coalesce(column_default, '')"
        " FROM information_schema.columns WHERE table_schema = 'public'"
        " UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        " UNION ALL SELECT 'function', oid::regprocedure::text, md5(prosrc) || coalesce(proacl::text, '')"
        " FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        " UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid)"
        " FROM pg_trigger WHERE NOT tgisinternal"
        " UNION ALL SELECT 'policy', tablename || '.' || policyname, roles::text || cmd FROM pg_policies"
        " UNION ALL SELECT 'table', relname, relacl::text || relrowsecurity FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1, 2"
    ).fetchall()


def test_again_changes_nothing(project: Project) -> None:
    """Running all migrations a second time is no error, and leaves schema and data as they are."""
    project.put("a", b"x", upload_of(b"x"))
    shape, record, log, row = _shape(project), project.record("a"), project.log(), project.row("a")
    migrate(project.address)
    assert _shape(project) == shape
    assert (project.record("a"), project.log(), project.row("a")) == (record, log, row)


def test_one_script_is_the_same(bare_project: Project, project: Project) -> None:
    """What `exaifs init` prints makes the same schema, and may be applied twice as well."""
    for _ in range(2):
        _as_migrator(bare_project, schema.as_one_script())
    assert _shape(bare_project) == _shape(project)


def test_version_is_reported(project: Project) -> None:
    """Hello names the newest migration."""
    hello = project.rpc("exaifs_hello", "user-files")
    assert hello["schema_version"] == schema.LATEST
    assert hello["trigger_installed"] is True
    assert hello["bucket_registered"] is True
    assert hello["bucket"] == {
        "id": "user-files",
        "public": False,
        "file_size_limit": 52428800,
        "allowed_mime_types": None,
    }
    assert project.rpc("exaifs_hello", "other")["bucket_registered"] is False
    assert project.rpc("exaifs_hello", "missing")["bucket"] is None


def test_given_table_is_kept(bare_project: Project) -> None:
    """A project with the given file_metadata keeps its rows and columns; of duplicates the newest stays."""
    _as_migrator(bare_project, GIVEN_TABLE)
    with bare_project.as_service() as connection:
        put(connection, "a", b"abc")
        put(connection, "gone-by", b"new bytes")
        put(connection, "made", b"x", bucket="generated-files")
        put(connection, "x" * 400, b"no row yet")
    bare_project.admin.execute(
        "INSERT INTO file_metadata (original_filename, file_size, mime_type, supabase_storage_path,"
        " file_hash, provider_file_ids, updated_at, access_count) VALUES"
        " ('A', 3, 'text/a', 'a', %(hash)s, '{\"kimi\": \"f1\"}', '2026-01-02', 7),"
        " ('A old', 3, 'text/a', 'a', 'older', '{}', '2026-01-01', 1),"
        " ('stale', 1, 'text/a', 'gone-by', %(hash)s, '{\"kimi\": \"f2\"}', now(), 0),"
        " ('made', 1, 'text/a', 'made', %(hash)s, '{}', now(), 0),"
        " ('no object', 1, 'text/a', 'nowhere', %(hash)s, '{}', now(), 0)",
        {"hash": upload_of(b"abc")["sha256"]},
    )
    for _ in range(2):
        migrate(bare_project.address)
        kept, record = bare_project.row("a"), bare_project.record("a")
        assert kept is not None
        assert record is not None
        assert (kept["original_filename"], kept["access_count"], kept["mime_type"]) == (
            "A",
            7,
            "text/a",
        )
        assert (record["sha256"], record["provider_file_ids"]) == (
            upload_of(b"abc")["sha256"],
            {"kimi": "f1"},
        )
        stale = bare_project.record("gone-by")
        assert stale is not None
        assert (stale["sha256"], stale["provider_file_ids"], stale["size"]) == (None, {}, 9)
        assert bare_project.row("nowhere") is not None
        assert bare_project.row("made") is None
        assert bare_project.row("made", "generated-files") is not None
        assert bare_project.row("x" * 400) is not None
        assert bare_project.one("SELECT count(*) FROM file_metadata") == 5
        assert bare_project.one("SELECT count(*) FROM exaifs_trigger_errors") == 0
    bare_project.put("theirs", b"without hash")
    assert bare_project.record("theirs") is not None


def test_duplicate_that_is_referred_to(bare_project: Project) -> None:
    """A duplicate row that cannot be deleted is set aside; the migration does not fail."""
    _as_migrator(bare_project, GIVEN_TABLE)
    bare_project.admin.execute("""
        INSERT INTO file_metadata (original_filename, file_size, mime_type, supabase_storage_path,
            file_hash, updated_at)
        VALUES ('new', 1, 'a/b', 'p', 'h', '2026-01-02'), ('old', 1, 'a/b', 'p', 'h', '2026-01-01');
        CREATE TABLE uses (file_id uuid REFERENCES file_metadata (file_id));
        INSERT INTO uses SELECT file_id FROM file_metadata
    """)
    migrate(bare_project.address)
    found = bare_project.admin.execute(
        "SELECT original_filename, bucket FROM file_metadata ORDER BY 1"
    ).fetchall()
    assert found[0] == ("new", "user-files")
    assert found[1][1].startswith("duplicate:")


def test_earlier_tables_are_kept(bare_project: Project) -> None:
    """Conversation tables that were there keep their columns, rows and openness."""
    _as_migrator(bare_project, EARLIER_TABLES)
    for _ in range(2):
        migrate(bare_project.address)
    assert bare_project.one("SELECT title FROM conversations") == "kept"
    assert bare_project.one("SELECT count(*) FROM schema_version") == 2
    columns = (
        "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attnum > 0 AND attrelid = "
    )
    assert bare_project.one(columns + "'files'::regclass") == "id,storage_path,original_name"
    assert bare_project.one("SELECT relrowsecurity FROM pg_class WHERE relname = 'conversations'") is False


@pytest.mark.parametrize("earlier", ["", EARLIER_TABLES])
def test_deleted_conversation_queues_its_objects(bare_project: Project, earlier: str) -> None:
    """What only this conversation has is queued for the janitor, whatever the tables look like."""
    _as_migrator(bare_project, earlier)
    migrate(bare_project.address)
    project = bare_project
    for key in ("linked", "shared", "named", "uploads/c7/a", "uploads/c77/b", "loose"):
        project.put(key, b"x")
    project.admin.execute("""
        UPDATE file_metadata SET metadata = metadata || '{"continuation_id": "c7"}'
            WHERE supabase_storage_path = 'named';
        INSERT INTO conversations (continuation_id) VALUES ('c8');
        INSERT INTO files (storage_path, original_name) VALUES ('linked', 'l'), ('shared', 's');
        INSERT INTO conversation_files (conversation_id, file_id)
            SELECT c.id, f.id FROM conversations c, files f
            WHERE (c.continuation_id = 'c7' AND f.storage_path IN ('linked', 'shared'))
                OR (c.continuation_id = 'c8' AND f.storage_path = 'shared');
        DELETE FROM conversations WHERE continuation_id = 'c7'
    """)
    assert project.one("SELECT string_agg(message, ',') FROM exaifs_trigger_errors") is None
    queued = project.rpc("exaifs_delete_queue_list", "user-files", 100)["keys"]
    assert sorted(queued) == ["linked", "named", "uploads/c7/a"]
    assert (
        project.one("SELECT string_agg(storage_path, ',' ORDER BY storage_path) FROM files")
        == "shared,uploads/c77/b"
    )
    assert project.one("SELECT count(*) FROM storage.objects") == 6

    project.remove(["linked"])
    project.put("named", b"a new life")
    assert project.rpc("exaifs_delete_queue_list", "user-files", 100)["keys"] == ["uploads/c7/a"]


def test_deleting_a_conversation_never_fails(project: Project) -> None:
    """A conversation goes even if its files cannot be queued; that is recorded."""
    project.admin.execute("""
        INSERT INTO conversations (continuation_id) VALUES ('c7');
        DROP TABLE exaifs_delete_queue;
        DELETE FROM conversations
    """)
    assert project.one("SELECT operation FROM exaifs_trigger_errors") == "queue conversation"


def test_nothing_is_for_anonymous(project: Project) -> None:
    """Tables and functions are closed to anon and authenticated, whatever the defaults say."""
    functions = (
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND "
    )
    for role in ("anon", "authenticated"):
        assert project.one(functions + "has_function_privilege(%s, oid, 'EXECUTE')", role) is None
    assert project.one(functions + "NOT has_function_privilege('service_role', oid, 'EXECUTE')") is None
    assert project.one(functions + "NOT 'search_path=\"\"' = ANY (coalesce(proconfig, '{}'))") is None
    assert (
        project.one(
            functions + "prosecdef AND proname NOT IN ('exaifs_on_object', 'exaifs_on_conversation_delete',"
            " 'exaifs_before_object_delete')"
        )
        is None
    )
    project.put("a", b"x")
    for table in (
        "file_metadata",
        "conversations",
        "messages",
        "files",
        "conversation_files",
        "schema_version",
    ):
        with psycopg.connect(project.address) as connection:
            connection.execute("SET ROLE anon")
            try:
                query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
                found = connection.execute(query).fetchone()
            except psycopg.errors.InsufficientPrivilege:
                continue
            assert found == (0,)


def test_tables_of_ours_are_closed_and_granted(project: Project) -> None:
    """Each table of exaifs has row level security, nothing for anon, and grants for service_role."""
    tables = project.admin.execute(
        "SELECT relname, relrowsecurity, has_table_privilege('anon', oid, 'SELECT'),"
        " has_table_privilege('service_role', oid, 'SELECT, INSERT') AND"
        " has_table_privilege('service_role', oid, 'UPDATE') AND"
        " has_table_privilege('service_role', oid, 'DELETE')"
        " FROM pg_class WHERE relkind = 'r' AND starts_with(relname, 'exaifs_') ORDER BY 1"
    ).fetchall()
    assert [table[1:] for table in tables] == [(True, False, True)] * len(tables)
    assert len(tables) == 7


def test_register_makes_rows_for_what_is_there(project: Project) -> None:
    """A bucket registered later gets rows for its objects, and is followed from then on."""
    project.put("old", b"x", upload_of(b"x"), bucket="other")
    cursor = project.rpc("exaifs_hello", "other")["cursor"]
    assert project.rpc("exaifs_changes", "other", cursor, 10)["continuous"] is False
    assert project.rpc("exaifs_register_bucket", "other") == {"bucket": "other", "new": True, "rows": 1}
    assert project.rpc("exaifs_register_bucket", "other") == {"bucket": "other", "new": False, "rows": 0}
    record = project.record("old", "other")
    assert record is not None
    assert record["sha256"] == upload_of(b"x")["sha256"]
    project.put("new", b"y", bucket="other")
    assert project.row("new", "other") is not None


def test_without_storage(bare_project: Project) -> None:
    """On a database without Storage the migrations stop with a word on what to do."""
    bare_project.admin.execute("DROP SCHEMA storage CASCADE")
    with pytest.raises(psycopg.errors.RaiseException, match=r"no storage\.objects"):
        migrate(bare_project.address)


def test_without_the_right_to_make_triggers(bare_project: Project) -> None:
    """Where the role may not make the trigger, the rest works and hello says what is missing."""
    # The role has it twice: itself, and as a member of service_role.
    bare_project.admin.execute("""
        SET ROLE supabase_storage_admin;
        REVOKE TRIGGER ON storage.objects FROM hosted_postgres, anon, authenticated, service_role
    """)
    migrate(bare_project.address)
    assert bare_project.rpc("exaifs_hello", "user-files")["trigger_installed"] is False
    bare_project.put("a", b"x", upload_of(b"x"))
    record = bare_project.record("a")
    assert record is not None
    assert (record["file_id"], record["sha256"]) == (None, None)
    patched = bare_project.rpc("exaifs_patch", "user-files", "a", {"posix": {"mode": 0o600}})
    assert (patched["sha256"], patched["posix"]["mode"]) == (upload_of(b"x")["sha256"], 0o600)
