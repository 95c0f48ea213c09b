"""The directory in which lite runs: its configuration, keys, migrations and data.

STATE_DIR/              mode 0700
  keys.json             0600, made once
  server.json           port and process of the last server
  migrations.json       what was applied, by content
  lite.log              0600: lite prints its keys when it starts
  lock                  held while a server runs
  supabase/config.toml  0600
  supabase/migrations/  copies of the package's SQL, also of earlier versions
  supabase/.temp/       database (data/) and objects (storage/)
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from exaifs.embedded.files import read_json, write_private
from exaifs.errors import EmbeddedError
from exaifs.remote.schema import migrations

LOOPBACK: Final = "127.0.0.1"
_FIRST_VERSION: Final = 20260101_000000
_ROUND: Final = 100
"""More than there are migrations, so that those of a later round have later names."""

_PORTS: Final = range(20_000, 32_000)
"""Below the range from which Linux takes ports for outgoing connections, so none can be in the way."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The project's own secrets; nothing about them is guessable or shared between projects."""

    jwt_secret: str = field(repr=False)
    publishable_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    @classmethod
    def generate(cls) -> Keys:
        """Make new ones."""
        return cls(
            jwt_secret=secrets.token_urlsafe(48),
            publishable_key=f"sb_publishable_{secrets.token_urlsafe(24)}",
            secret_key=f"sb_secret_{secrets.token_urlsafe(32)}",
        )


class Project:
    """The files of one state directory. Used by one process at a time, under its lock."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.absolute()
        self.log = self.state_dir / "lite.log"
        self.process_file = self.state_dir / "server.json"
        self._supabase_dir = self.state_dir / "supabase"
        self._migrations_dir = self._supabase_dir / "migrations"

    def create(self) -> None:
        """Make the directories, for the owner only.

        Raises:
            EmbeddedError: the place cannot be written.
        """
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._migrations_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise EmbeddedError(
                f"cannot create the state directory {self.state_dir}: {exc.strerror}. Name a place that "
                "you can write."
            ) from exc

    def keys(self) -> Keys:
        """Return the keys, made at the first call.

        Raises:
            EmbeddedError: the file is damaged.
        """
        path = self.state_dir / "keys.json"
        if not path.exists():
            write_private(path, json.dumps(asdict(Keys.generate()), indent=2) + "\n")
        try:
            return Keys(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as exc:
            raise EmbeddedError(
                f"{path} is damaged. Remove it for new keys (whoever uses the old ones needs the new)."
            ) from exc

    def configure(self, port: int, keys: Keys) -> None:
        """Write lite's configuration."""
        write_private(self._supabase_dir / "config.toml", _config_text(port, keys))

    def last_port(self) -> int:
        """Return the port of the last server, 0 if there was none."""
        port = read_json(self.state_dir / "port.json").get("port")
        return port if isinstance(port, int) else 0

    def remember_port(self, port: int) -> None:
        """Write down the port for the next run."""
        write_private(self.state_dir / "port.json", json.dumps({"port": port}) + "\n")

    @property
    def is_new(self) -> bool:
        """Whether no migration has ever been applied here."""
        return not (self.state_dir / "migrations.json").exists()

    def write_migrations(self) -> bool:
        """Copy the package's migrations; return whether some have yet to be applied."""
        applied = self._applied()
        wanted = _wanted_files(applied)
        for name, sql in wanted.items():
            write_private(self._migrations_dir / name, sql)
        return not wanted.keys() <= applied.keys()

    def remember_migrations(self) -> None:
        """Write down that everything `write_migrations` wrote has been applied."""
        applied = self._applied()
        applied |= {name: _digest(sql) for name, sql in _wanted_files(applied).items()}
        write_private(self.state_dir / "migrations.json", json.dumps(applied, indent=2) + "\n")

    def _applied(self) -> dict[str, str]:
        """Return the digests of what was applied, by file name."""
        return read_json(self.state_dir / "migrations.json")


def _wanted_files(applied: Mapping[str, str]) -> dict[str, str]:
    """Return SQL by the file names under which it is, or is to be, applied.

    Lite knows migrations by name only. Where one has changed since, all are applied again under new names,
    as `exaifs init` does at every call: each may be applied any number of times.
    """
    last = max((int(name[:14]) - _FIRST_VERSION for name in applied), default=0) // _ROUND
    wanted = _migration_files(last)
    if any(applied.get(name, _digest(sql)) != _digest(sql) for name, sql in wanted.items()):
        wanted = _migration_files(last + 1)
    return wanted


def _migration_files(number_of_round: int) -> dict[str, str]:
    """Return SQL by file name, as the Supabase CLI and lite name them: 14 digits, then words."""
    first = _FIRST_VERSION + number_of_round * _ROUND
    return {
        f"{first + number}_{migration.name}.sql": migration.sql
        for number, migration in enumerate(migrations(), start=1)
    }


def _config_text(port: int, keys: Keys) -> str:
    """Return lite's config.toml. JSON's strings are TOML's, too."""
    return f"""\
# Written by exaifs at every start; changes are lost.
[api]
port = {port}

[db]
driver = "pglite"
url = "supabase/.temp/data"

[auth]
enabled = true
enable_signup = false
jwt_secret = {json.dumps(keys.jwt_secret)}
publishable_key = {json.dumps(keys.publishable_key)}
secret_key = {json.dumps(keys.secret_key)}

[storage]
enabled = true
"""


def choose_port(wanted: int, last: int) -> int:
    """Return the port that was asked for; for 0 the last one again, else any that is free.

    The same port again keeps the URL, and with it everything that clients cached under it.

    Raises:
        EmbeddedError: the port that was asked for is taken.
    """
    if wanted:
        if not _is_free(wanted):
            raise EmbeddedError(
                f"port {wanted} on {LOOPBACK} is taken or not allowed. Choose another one, or 0 for any."
            )
        return wanted
    candidates = [last] if last else []
    candidates += random.sample(_PORTS, 100)
    for port in candidates:
        if _is_free(port):
            return port
    raise EmbeddedError(f"no free port between {_PORTS.start} and {_PORTS.stop} on {LOOPBACK}. Name one.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
