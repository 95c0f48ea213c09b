"""Runs the benchmarks: `make bench`, or `python benchmarks/run.py [--json] [NAME ...]`.

Names are `scale`, `freshness` and `transfer`; all without one. A server that SUPABASE_URL names is used
where there is one, for the last two; it gets buckets of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import freshness, scale, transfer
from benchmarks.results import Report

_ALL = {"scale": scale.run, "freshness": freshness.run, "transfer": transfer.run}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(_ALL))
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(_ALL)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    report = Report()
    for name in arguments.names or _ALL:
        with TemporaryDirectory(prefix=f"exaifs-{name}-") as directory:
            _ALL[name](report, Path(directory))
    if arguments.json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        report.show()


if __name__ == "__main__":
    main()
