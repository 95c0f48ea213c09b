"""The in-memory double keeps every rule of the remote seam, under both event loops."""

from __future__ import annotations

import pytest

from exaifs.remote.files import FileCatalog
from tests.contract.catalog_contract import CatalogContract
from tests.contract.conftest import DoubleWorld
from tests.contract.files_contract import FilesContract
from tests.contract.housekeeping_contract import HousekeepingContract
from tests.contract.object_contract import ObjectContract
from tests.contract.provider_contract import ProviderIdContract
from tests.support.double_files import DoubleFiles
from tests.support.world import World

pytestmark = pytest.mark.anyio


class DoubleFixture:
    @pytest.fixture
    def world(self, double_world: DoubleWorld) -> World:
        return double_world


class TestObjects(DoubleFixture, ObjectContract):
    """`ObjectStore` on the double."""


class TestCatalog(DoubleFixture, CatalogContract):
    """`Catalog` on the double."""


class TestProviderIds(DoubleFixture, ProviderIdContract):
    """Provider file ids on the double."""


class TestFiles(DoubleFixture, FilesContract):
    """`FileCatalog` on the double."""

    @pytest.fixture
    def files(self, double_world: DoubleWorld) -> FileCatalog:
        return DoubleFiles(double_world.server)


class TestHousekeeping(DoubleFixture, HousekeepingContract):
    """`Housekeeping` on the double."""

    @pytest.fixture
    def files(self, double_world: DoubleWorld) -> FileCatalog:
        return DoubleFiles(double_world.server)


class TestCatalogOfAServerThatDropsMetadata(CatalogContract):
    """As on the embedded server: only the commit fills the row."""

    @pytest.fixture
    def world(self, double_world: DoubleWorld) -> World:
        double_world.server.bucket.keeps_metadata = False
        return double_world
