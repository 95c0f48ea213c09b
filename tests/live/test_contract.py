"""The live Supabase keeps every rule of the remote seam."""

from __future__ import annotations

import pytest

from tests.contract.catalog_contract import CatalogContract
from tests.contract.object_contract import ObjectContract

pytestmark = [pytest.mark.anyio, pytest.mark.live]


class TestObjects(ObjectContract):
    """`ObjectStore` on the live server."""


class TestCatalog(CatalogContract):
    """`Catalog` on the live server."""
