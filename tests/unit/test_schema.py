from __future__ import annotations

import re

from exaifs.remote import schema


def test_numbers_have_no_gaps() -> None:
    """Migrations are numbered from 1 on, and each name is used once."""
    found = schema.migrations()
    assert [step.number for step in found] == list(range(1, len(found) + 1))
    assert len({step.name for step in found}) == len(found)
    assert found[-1].number == schema.LATEST


def test_each_migration_records_itself() -> None:
    """The last statement of a migration says that it ran, under its own number and name."""
    for step in schema.migrations():
        last = step.sql.rstrip().rsplit("\n\n", 1)[1]
        record = "INSERT INTO public.exaifs_migrations (number, name)"
        assert last == f"{record} VALUES ({step.number}, '{step.name}') ON CONFLICT DO NOTHING;"


def test_no_transaction_control_inside() -> None:
    """Who applies a migration decides on the transaction: no statement inside ends one."""
    for step in schema.migrations():
        assert not re.search(r"^(BEGIN|COMMIT|ROLLBACK)\s*;", step.sql, re.MULTILINE)


def test_one_script() -> None:
    """The script holds every migration in order, in one transaction."""
    script = schema.as_one_script()
    places = [script.index(step.sql.strip()) for step in schema.migrations()]
    assert places == sorted(places)
    assert re.findall(r"^(BEGIN|COMMIT);$", script, re.MULTILINE) == ["BEGIN", "COMMIT"]


def test_storage_is_not_altered() -> None:
    """In the schema of a hosted project's Storage only a trigger may be made: nothing else."""
    for step in schema.migrations():
        assert not re.search(r"\bDROP (TRIGGER|TABLE|FUNCTION)\b", step.sql)
        for statement in re.findall(
            r"\b(?:ALTER TABLE|CREATE TABLE|CREATE FUNCTION)[^;(]*\bstorage\.\w+", step.sql
        ):
            raise AssertionError(statement)


def test_every_column_is_explained() -> None:
    """Each column of a table says beside it what it means."""
    table = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?public\.\w+ \((.*?)\n *\);", re.DOTALL)
    column = re.compile(r" +[a-z_]+ (?:uuid|text|bigint|integer|jsonb|boolean|timestamptz)\b")
    columns = [
        line
        for step in schema.migrations()
        for body in table.findall(step.sql)
        for line in body.splitlines()
        if column.match(line)
    ]
    assert len(columns) > 60
    assert [line for line in columns if "--" not in line] == []
