"""Mixtures of faults that campaigns choose from."""

from __future__ import annotations

import random

from tests.support.proxy import Fault, Proxy, Weather

_LIGHT: dict[Fault, float] = {"lose": 0.06, "drop": 0.04, "500": 0.04, "503": 0.03, "429": 0.03}
_HEAVY: dict[Fault, float] = {
    "drop": 0.06,
    "lose": 0.08,
    "reset": 0.04,
    "partial": 0.05,
    "truncate": 0.05,
    "twice": 0.05,
    "429": 0.03,
    "429 later": 0.01,
    "500": 0.05,
    "500 done": 0.04,
    "503": 0.04,
    "html": 0.03,
    "hole": 0.01,
    "hole done": 0.01,
}

CLEAR = Weather()
SLOW = Weather(delay_s=0.05)
LIGHT = Weather(_LIGHT, delay_s=0.02)
HEAVY = Weather(_HEAVY, delay_s=0.02)
BROKEN = Weather({"500": 0.5, "lose": 0.3, "503": 0.2})


def change(proxy: Proxy, chance: random.Random) -> str:
    """Have some weather begin; return its name."""
    name = chance.choice(("clear", "slow", "slow", "light", "heavy", "broken", "away", "stuck"))
    kinds = {"clear": CLEAR, "slow": SLOW, "light": LIGHT, "heavy": HEAVY, "broken": BROKEN}
    proxy.weather = kinds.get(name, CLEAR)
    if name == "away":
        proxy.refuse()
    elif name == "stuck":
        proxy.hang()
    else:
        proxy.serve()
    return name
