"""The live Supabase keeps every rule of the remote seam."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from exaifs.remote.files import FileCatalog, SupabaseFiles
from exaifs.remote.session import open_session
from tests.conftest import GIVEN
from tests.contract.catalog_contract import CatalogContract
from tests.contract.files_contract import FilesContract
from tests.contract.housekeeping_contract import HousekeepingContract
from tests.contract.object_contract import ObjectContract
from tests.contract.provider_contract import ProviderIdContract
from tests.support.http_world import BUCKET, Server

if not (GIVEN.get("SUPABASE_URL") and GIVEN.get("SUPABASE_SERVICE_ROLE_KEY")):
    pytest.skip(
        "set SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY to run the contract on a live Supabase",
        allow_module_level=True,
    )

pytestmark = [pytest.mark.anyio, pytest.mark.live]


class TestObjects(ObjectContract):
    """`ObjectStore` on the live server."""


class TestCatalog(CatalogContract):
    """`Catalog` on the live server."""


class TestProviderIds(ProviderIdContract):
    """Provider file ids on the live server."""


class FilesFixture:
    @pytest.fixture
    async def files(self, live_server: Server) -> AsyncIterator[FileCatalog]:
        async with open_session(live_server.config(BUCKET)) as session:
            yield SupabaseFiles(session, BUCKET)


class TestFiles(FilesFixture, FilesContract):
    """`FileCatalog` on the live server."""


class TestHousekeeping(FilesFixture, HousekeepingContract):
    """`Housekeeping` on the live server."""
