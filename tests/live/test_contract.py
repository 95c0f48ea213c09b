"""The live Supabase keeps every rule of the remote seam."""

from __future__ import annotations

import os

import pytest

from tests.contract.catalog_contract import CatalogContract
from tests.contract.object_contract import ObjectContract
from tests.contract.provider_contract import ProviderIdContract

if not (os.environ.get("SUPABASE_URL") and os.environ.get("SUPABASE_SERVICE_ROLE_KEY")):
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
