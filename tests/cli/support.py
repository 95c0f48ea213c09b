"""Runs the real program, as a user's shell would, and makes keys for servers of these tests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

TIMEOUT_S = 180.0
"""No command of these tests works for long; a hang must not stop the others."""

_OURS = (
    "SUPABASE_",
    "EXAIFS_",
    "FILE_",
    "MAX_",
    "TEST_FILES_DIR",
    "PG",
    "NO_COLOR",
    "FORCE_COLOR",
    "COLUMNS",
    # A proxy of this machine would be asked for names that are not of this machine.
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)

_RESOLVER = {"RES_OPTIONS": "timeout:1 attempts:1"}
"""Where no name server can be reached, a name that does not exist is given up within a second or two."""


def clean_environment(settings: Mapping[str, str] = {}) -> dict[str, str]:
    """Return this process's environment with only the given settings of exaifs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, **_RESOLVER, **settings}


class Result:
    """What a run left: exit code, both outputs."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    @property
    def output(self) -> str:
        """Everything that was printed."""
        return self.stdout + self.stderr

    @property
    def json(self) -> Any:
        """The JSON on stdout."""
        assert self.stdout.startswith("{"), self
        return json.loads(self.stdout)

    @property
    def complaint(self) -> str:
        """The one line on stderr that begins with `exaifs:`."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self
        assert lines[0].startswith("exaifs: "), self
        return lines[0]

    def check(self, name: str) -> dict[str, Any]:
        """Return one check of `doctor --json`, numbered or local."""
        found = [each for each in (*self.json["checks"], *self.json["local"]) if each["name"] == name]
        assert len(found) == 1, self
        check: dict[str, Any] = found[0]
        return check


def exaifs(*arguments: str, env: Mapping[str, str] = {}, timeout_s: float = TIMEOUT_S) -> Result:
    """Run `python -m exaifs` to its end."""
    process = subprocess.run(
        [sys.executable, "-m", "exaifs", *arguments],
        env=clean_environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Result(process.returncode, process.stdout, process.stderr)


def jwt(secret: str, **claims: Any) -> str:
    """Return a JSON Web Token signed with HS256, as Supabase's legacy keys are."""
    parts = [_base64url(b'{"alg":"HS256","typ":"JWT"}'), _base64url(json.dumps(claims).encode())]
    signature = hmac.new(secret.encode(), ".".join(parts).encode(), hashlib.sha256).digest()
    return ".".join([*parts, _base64url(signature)])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
