"""One cluster a session; each test gets a database of its own, copied from a template."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.postgres import Project, cluster, create_project, migrate, server_programs

_numbers = count(1)


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """Run PostgreSQL for the session."""
    programs = server_programs()
    if programs is None:
        pytest.skip("NO POSTGRESQL SERVER HERE: the SQL stays untested; apt-get install postgresql")
    with cluster(programs) as address:
        yield address


@pytest.fixture(scope="session")
def migrated_template(cluster_address: str) -> str:
    """Return the name of a database with all migrations."""
    migrate(create_project(cluster_address, "migrated"))
    return "migrated"


@pytest.fixture
def project(cluster_address: str, migrated_template: str) -> Iterator[Project]:
    """A project with all migrations, and nothing in it."""
    found = Project(create_project(cluster_address, f"project{next(_numbers)}", migrated_template))
    yield found
    found.close()


@pytest.fixture
def bare_project(cluster_address: str) -> Iterator[Project]:
    """A project that exaifs has never seen."""
    found = Project(create_project(cluster_address, f"project{next(_numbers)}"))
    yield found
    found.close()
