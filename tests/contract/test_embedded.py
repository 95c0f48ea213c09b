"""The embedded Supabase keeps every rule of the remote seam, through the client that a mount uses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from exaifs.remote.files import FileCatalog, SupabaseFiles
from exaifs.remote.session import open_session
from tests.contract.catalog_contract import CatalogContract
from tests.contract.files_contract import FilesContract
from tests.contract.housekeeping_contract import HousekeepingContract
from tests.contract.object_contract import ObjectContract
from tests.contract.provider_contract import ProviderIdContract
from tests.support.http_world import BUCKET, HttpWorld, Server
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]


class EmbeddedFixture:
    """One event loop is enough here: HTTP under both is what `test_broken_downloads` runs."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "trio"

    @pytest.fixture
    def world(self, embedded_world: HttpWorld) -> World:
        return embedded_world


class TestObjects(EmbeddedFixture, ObjectContract):
    """`ObjectStore` on the embedded server."""


class TestCatalog(EmbeddedFixture, CatalogContract):
    """`Catalog` on the embedded server."""


class TestProviderIds(EmbeddedFixture, ProviderIdContract):
    """Provider file ids on the embedded server."""


class FilesFixture(EmbeddedFixture):
    @pytest.fixture
    async def files(self, embedded_server: Server) -> AsyncIterator[FileCatalog]:
        async with open_session(embedded_server.config(BUCKET)) as session:
            yield SupabaseFiles(session, BUCKET)


class TestFiles(FilesFixture, FilesContract):
    """`FileCatalog` on the embedded server."""


class TestHousekeeping(FilesFixture, HousekeepingContract):
    """`Housekeeping` on the embedded server."""
