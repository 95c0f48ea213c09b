"""Reads what is shipped beside the package: the Dockerfile, the unit and its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices

from exaifs.config import Config

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = REPOSITORY / "systemd" / "exaifs@.service"
SETTINGS = REPOSITORY / "systemd" / "exaifs.env.example"
SECRET = re.compile(r"eyJ[\w-]{8}|sb_secret_|postgres(ql)?://\S+:\S+@")
"""What keys of Supabase and database addresses with a password look like."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined."""

    name: str
    text: str


def known_variables() -> set[str]:
    """Return every environment variable that exaifs reads as a setting."""
    names: set[str] = set()
    for field in Config.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names |= {name for name in field.validation_alias.choices if isinstance(name, str)}
    return names


def stages() -> list[list[Instruction]]:
    """Return the Dockerfile's stages, each beginning with its FROM."""
    lines = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    found: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        if name:
            found[-1].append(Instruction(name, rest.strip()))
    return found


def final(name: str) -> str:
    """Return the last such instruction of the image."""
    return [each.text for each in stages()[-1] if each.name == name][-1]


def image_environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    return dict(re.findall(r"(\w+)=(\S+)", final("ENV")))


def packages(stage: list[Instruction]) -> set[str]:
    """Return the Debian packages that a stage installs."""
    text = " ".join(each.text for each in stage if each.name == "RUN")
    return set(re.findall(r"install -y --no-install-recommends ([^&]*)&&", text)[0].split())


def unit() -> list[tuple[str, str]]:
    """Return the unit's settings in order; a name may come more than once."""
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if re.match(r"\w+=", line)]
    return [(name, value) for name, _, value in pairs]


def setting(name: str) -> str:
    """Return the only value of a setting of the unit."""
    [value] = [value for key, value in unit() if key == name]
    return value
