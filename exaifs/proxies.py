"""Proxies that the environment names: whether they can be used at all, before a library trips over them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies

from exaifs.errors import ConfigError

_USED = ("http", "https", "all")
"""The variables that count here, as HTTPS_PROXY does."""


def check_proxies() -> None:
    """Look at the proxies that requests would be sent to.

    Raises:
        ConfigError: one cannot be used. What it says is not repeated: it may hold a password.
    """
    proxies = getproxies()
    if proxies.get("no", "").strip() == "*":
        return
    for kind in _USED:
        if value := proxies.get(kind):
            _check(kind, value)


def _check(kind: str, value: str) -> None:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme in {"socks5", "socks5h"}:
        if find_spec("socksio") is None:
            raise ConfigError(
                f"{_variable(kind)}: a SOCKS proxy needs another package: pip install 'httpx[socks]'. Or "
                "unset it."
            )
    elif parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(
            f"{_variable(kind)}: not the URL of a proxy. Set it as http://HOST:PORT, or unset it."
        )


def _variable(kind: str) -> str:
    """Return its name, in the spelling that is set."""
    name = f"{kind}_proxy"
    return name if name in os.environ else name.upper()
