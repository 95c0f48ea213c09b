"""What to do about an error of `remote.probe`, whose own words are short: one place for all the advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from exaifs.config import Config
from exaifs.errors import (
    Busy,
    NotFound,
    Rejected,
    RemoteError,
    SchemaMissing,
    Unauthorized,
    Unreachable,
)
from exaifs.ops.keys import WHERE, objection, read_key

RUN_INIT: Final = (
    "Run `exaifs init --apply`, or paste what `exaifs init` prints into the dashboard's SQL editor."
)
CHECK_URL: Final = (
    "Check SUPABASE_URL and the network; a project of the free plan is paused when it was not used for a "
    "week: the dashboard restores it."
)


def explain(error: RemoteError | NotFound, config: Config) -> tuple[str, str]:
    """Return what went wrong and what to do, each a sentence without a dot at its end or with one."""
    match error:
        case Unauthorized():
            return objection(read_key(config.key), config.supabase_url, datetime.now(UTC)) or (
                f"the key is refused: {error}",
                f"It is of another project, was replaced or is cut off. Copy it again from {WHERE}.",
            )
        case SchemaMissing():
            return f"the schema of exaifs is not installed: {error}", RUN_INIT
        case Unreachable():
            return f"{config.supabase_url} cannot be used: {error}", CHECK_URL
        case Busy():
            advice = "Wait a minute and try again; the dashboard shows the project's health."
            return f"{config.supabase_url} is busy: {error}", advice
        case NotFound() | Rejected():
            advice = "Check that SUPABASE_URL is the project's own URL, and the service switched on."
            return f"{config.supabase_url} does not do that: {error}", advice
        case _:
            return f"{config.supabase_url}: {error}", CHECK_URL


@contextmanager
def advised(config: Config) -> Iterator[None]:
    """Add to errors of the block what to do; for programs that show nothing but the error.

    Raises:
        RemoteError: of the same class as the one that was raised.
    """
    try:
        yield
    except (Unauthorized, Unreachable, Busy) as exc:
        what, advice = explain(exc, config)
        raise type(exc)(f"{what}. {advice}") from exc
