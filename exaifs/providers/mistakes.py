"""What is wrong in the providers' settings, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError

_KEYS = frozenset({"api_key", "apikey", "key", "token", "secret"})


def mistake_in(
    error: ValidationError, for_all: Iterable[str], for_one: Iterable[str], built_in: Iterable[str]
) -> str:
    """Say the first mistake: where, and what to do. Values are not repeated, one could be a key.

    Args:
        error: what pydantic found.
        for_all: the settings that stand above the first table.
        for_one: those of a provider.
        built_in: the providers that need no `base_url`.
    """
    problem = error.errors(include_input=False, include_url=False)[0]
    *table, name = (str(part) for part in problem["loc"])
    where = ".".join((*table, name))
    if problem["type"] == "missing":
        return f"{where}: is needed, because {table[-1]!r} is not built in ({', '.join(built_in)})"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
    if table and name in for_all:
        return f"{where}: is for all providers: write it above the first [provider.NAME]"
    if name.lower() in _KEYS:
        return (
            f"{where}: keys do not stand in this file: name the key's variable with api_key_env, "
            "or its file with api_key_file"
        )
    known = list(for_one if table else for_all)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
    return f"{where}: no such setting; {hint}"
