"""`python -m exaifs.embedded STATE_DIR`: the server alone, for tests and other programs.

Prints the two variables of the env file on stdout once it answers, then serves until SIGINT, SIGTERM or
SIGHUP, or with `--until-eof` until its stdin closes, so that it cannot outlive who started it.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import trio

from exaifs.embedded.install import default_install_dir, install
from exaifs.embedded.server import env_file_text, serve
from exaifs.embedded.stopping import until_stopped
from exaifs.errors import EmbeddedError, ExaifsError


async def _serve(state_dir: Path, port: int) -> int:
    async with serve(state_dir, port) as server:
        sys.stdout.write(env_file_text(server))
        sys.stdout.flush()
        raise EmbeddedError(await server.wait_ended())


def main() -> int:
    """Run it and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m exaifs.embedded", description=__doc__)
    parser.add_argument(
        "state_dir", type=Path, nargs="?", help="keys, database and objects; made if missing"
    )
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 for any (default)")
    parser.add_argument("--until-eof", action="store_true", help="stop when stdin closes")
    parser.add_argument("--install-only", action="store_true", help="install the Node packages and leave")
    given = parser.parse_args()
    if given.state_dir is None and not given.install_only:
        parser.error("name a state directory")
    work = partial(_serve, given.state_dir, given.port)
    try:
        if given.install_only:
            trio.run(install, default_install_dir())
            return 0
        return trio.run(partial(until_stopped, work, until_eof=given.until_eof))
    except ExaifsError as exc:
        sys.stderr.write(f"exaifs: {exc}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
