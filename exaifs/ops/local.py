"""Checks of this machine: what a mount needs besides Supabase. Nothing here leaves the host."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exaifs.config import MIB, Config
from exaifs.mountpoint import FUSE_CONF, lets_users_allow_others, may_mount
from exaifs.ops.checks import Check, Status

FUSE_DEVICE: Final = Path("/dev/fuse")
STATUS: Final = Path("/proc/self/status")
LIBRARIES: Final[Mapping[str, str]] = {"pyfuse3": "libfuse3-3", "magic": "libmagic1"}
"""Python module, and the Debian package of the library under it."""
LOW_SPACE_BYTES: Final = 256 * MIB
"""Below this a mount works, but a file of the usual limit (50 MiB) may soon find no room."""


def examine_machine(config: Config | None) -> tuple[Check, ...]:
    """Check what FUSE needs and, with a configuration, the cache directory and --allow-other."""
    checks = [fuse_device(), fusermount(), libraries()]
    if config is not None:
        checks.append(cache_directory(config.cache_dir))
        if config.allow_other:
            checks.append(allow_other())
    return tuple(checks)


def fuse_device(device: Path = FUSE_DEVICE) -> Check:
    """Open the device as a mount would."""
    title = str(device)
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Check(
            "fuse_device",
            title,
            Status.FAILED,
            "is not there",
            fix="Load the kernel module (modprobe fuse); in Docker add `--device /dev/fuse "
            "--cap-add SYS_ADMIN`, in Kubernetes a FUSE device plugin.",
        )
    except PermissionError:
        if os.geteuid() != 0:
            # fusermount3 is setuid and opens it itself.
            return Check("fuse_device", title, Status.OK, "is there, for fusermount3 to open")
        return Check(
            "fuse_device",
            title,
            Status.FAILED,
            "may not be opened, not even by root",
            fix="In Docker add `--device /dev/fuse --cap-add SYS_ADMIN`.",
        )
    except OSError as exc:
        return Check(
            "fuse_device",
            title,
            Status.FAILED,
            f"cannot be opened: {exc.strerror}",
            fix="Load the kernel module (modprobe fuse) and look at dmesg.",
        )
    return Check("fuse_device", title, Status.OK, "can be opened")


def fusermount() -> Check:
    """Look for the program that mounts and unmounts for users who are not root; root needs a capability."""
    found = shutil.which("fusermount3")
    if os.geteuid() == 0 and not may_mount(STATUS.read_text(encoding="utf-8", errors="replace")):
        return Check(
            "fusermount",
            "right to mount",
            Status.FAILED,
            "this root may not mount (CAP_SYS_ADMIN is missing)",
            fix="Start the container with `--device /dev/fuse --cap-add SYS_ADMIN`.",
        )
    if found:
        return Check("fusermount", "fusermount3", Status.OK, found)
    return Check(
        "fusermount",
        "fusermount3",
        Status.WARNING if os.geteuid() == 0 else Status.FAILED,
        "is not on the PATH" + (" (root can do without)" if os.geteuid() == 0 else ""),
        fix="Install Debian's package fuse3.",
    )


def libraries(names: Mapping[str, str] = LIBRARIES) -> Check:
    """Load the bindings that need a library of the system, as a mount will."""
    name, title = "libraries", "system libraries"
    for module, package in names.items():
        try:
            importlib.import_module(module)
        except ImportError as exc:
            fix = f"Install Debian's package {package}, then exaifs again if that is not enough."
            return Check(name, title, Status.FAILED, f"{module} cannot be loaded: {exc}", fix=fix)
    return Check(name, title, Status.OK, "libfuse3 and libmagic can be loaded")


def cache_directory(directory: Path) -> Check:
    """Write, sync and remove a file in the directory, or in its nearest parent that exists."""
    name, title = "cache_directory", "cache directory"
    fix = "Name another with FILE_CACHE_DIR or --cache-dir, or make this one writable for the user."
    place = directory
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            return Check(name, title, Status.FAILED, f"{directory}: {place} is not a directory", fix=fix)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".exaifs-doctor-") as probe:
            probe.write(b"exaifs\n" * 1024)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as exc:
        return Check(name, title, Status.FAILED, f"{directory}: {exc.strerror} in {place}", fix=fix)
    free_bytes = shutil.disk_usage(place).free
    state = f"{free_bytes // MIB} MiB free" + ("" if place == directory else ", will be created")
    if free_bytes < LOW_SPACE_BYTES:
        return Check(
            name,
            title,
            Status.WARNING,
            f"{directory}: {state}",
            fix="Free some space, or name a directory on another disk with FILE_CACHE_DIR.",
        )
    return Check(name, title, Status.OK, f"{directory}: {state}")


def allow_other(conf: Path = FUSE_CONF) -> Check:
    """Other users may be let in by root, or where /etc/fuse.conf says so."""
    name, title = "allow_other", "--allow-other"
    if os.geteuid() == 0:
        return Check(name, title, Status.OK, "root may allow it")
    if lets_users_allow_others(conf):
        return Check(name, title, Status.OK, f"{conf} allows it")
    return Check(
        name,
        title,
        Status.FAILED,
        f"{conf} does not allow it",
        fix=f"As root: echo user_allow_other >> {conf}",
    )
