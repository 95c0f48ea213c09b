"""One figure and its limit; the table of all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; a ratio is formed only with a limit measured in the same run."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    limit_name: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the limit; None without one."""
        return self.value / self.limit if self.limit else None


@dataclass(slots=True)
class Report:
    """The figures of a run, with the load average it began with."""

    load: float = field(default_factory=lambda: os.getloadavg()[0])
    figures: list[Figure] = field(default_factory=list)

    def add(
        self, name: str, value: float, unit: str, limit: float | None = None, limit_name: str = ""
    ) -> None:
        """Take in one value."""
        self.figures.append(Figure(name, value, unit, limit, limit_name))

    def to_json(self) -> str:
        """Return everything as one JSON object."""
        figures: list[dict[str, Any]] = [asdict(one) | {"ratio": one.ratio} for one in self.figures]
        return json.dumps({"load": self.load, "figures": figures}, indent=1)

    def show(self) -> None:
        """Print the table."""
        table = Table(
            title=f"load average {self.load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
        )
        for column in ("what", "measured", "limit", "times"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for one in self.figures:
            limit = "" if one.limit is None else f"{one.limit:.3g} {one.unit} ({one.limit_name})"
            ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
            table.add_row(one.name, f"{one.value:.3g} {one.unit}", limit, ratio)
        Console().print(table)


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def typical(action: Callable[[], object], times: int = 3) -> float:
    """Return the median of several runs, in seconds."""
    return median(timed(action) for _ in range(times))
