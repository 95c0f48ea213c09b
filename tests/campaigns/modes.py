"""The ways to mount that campaigns go through: what happens to a close that cannot be sent."""

from __future__ import annotations

Settings = dict[str, str]

REFUSE: Settings = {"EXAIFS_WRITE_MODE": "through", "EXAIFS_OFFLINE_WRITES": "refuse"}
"""A close that cannot be sent fails."""
THROUGH: Settings = {"EXAIFS_WRITE_MODE": "through", "EXAIFS_OFFLINE_WRITES": "journal"}
"""A close sends; while Supabase is away it journals."""
BACK: Settings = {"EXAIFS_WRITE_MODE": "back", "EXAIFS_OFFLINE_WRITES": "journal"}
"""A close journals; sending comes later."""

MODES = [REFUSE, THROUGH, BACK]


def name_of(settings: Settings) -> str:
    """Return a short name for messages and test ids."""
    return f"{settings['EXAIFS_WRITE_MODE']}-{settings['EXAIFS_OFFLINE_WRITES']}"
