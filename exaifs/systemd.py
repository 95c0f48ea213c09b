"""What a service manager wants to hear, over the socket it names; see sd_notify(3)."""

from __future__ import annotations

import os
import socket

import structlog

_log = structlog.get_logger(__name__)


def notify(*lines: str) -> None:
    """Send state lines such as `READY=1` or `STATUS=...`; without a service manager, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        # An abstract socket: its name starts with a zero byte.
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(lines).encode(), address)
    except OSError as exc:
        _log.warning("the service manager does not hear", reason=exc.strerror)
