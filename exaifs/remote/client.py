"""Opens one bucket of one Supabase project: the remote half of the composition root."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from exaifs.config import Config
from exaifs.remote.bucket import SupabaseBucket
from exaifs.remote.catalog import SupabaseCatalog
from exaifs.remote.housekeeping import SupabaseHousekeeping
from exaifs.remote.interface import Remote
from exaifs.remote.session import Session, identity_of, open_session


@asynccontextmanager
async def open_remote(config: Config) -> AsyncIterator[Remote]:
    """Open the bucket that the configuration names; nothing is sent before the first call.

    Raises:
        ConfigError: no server or key is named, or the key cannot be one.
    """
    async with open_session(config) as session:
        yield remote_of(session, config.bucket)


def remote_of(session: Session, bucket: str) -> Remote:
    """Return one bucket on a session that is open already."""
    catalog = SupabaseCatalog(session, bucket)
    return Remote(
        objects=SupabaseBucket(session, bucket, catalog.stat_once),
        catalog=catalog,
        bucket=bucket,
        identity=identity_of(session.url, bucket),
        housekeeping=SupabaseHousekeeping(session, bucket),
    )
