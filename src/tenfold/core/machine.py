"""What the machine offers, read from /proc and /sys. Knows nothing of devices, models or settings.

Every reader takes the file system's ``root``, so that tests can hand it a made one. A value that
the system does not tell is None; nothing here raises for a missing file.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from tenfold.core.errors import ConfigError

ROOT = Path("/")
_MACHINES = ("x86_64", "aarch64")
_X86 = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
_ARM = ("asimd", "asimddp", "i8mm", "sve")


@dataclass(slots=True, frozen=True)
class Memory:
    """Bytes. ``available`` can be taken now without swapping, inside any container limit."""

    total: int
    available: int


def refusal(system: str | None = None, machine: str | None = None) -> str | None:
    """Why Tenfold cannot run here, or None: it needs Linux on x86-64 or aarch64."""
    system = sys.platform if system is None else system
    machine = platform.machine() if machine is None else machine
    if system == "linux" and machine in _MACHINES:
        return None
    return (
        f"Tenfold runs on Linux on x86-64 or aarch64; this is {system} on {machine}. "
        "Use a Linux machine, a virtual machine or WSL 2."
    )


def require_supported() -> None:
    """Raises ConfigError, with what to do, anywhere but on Linux on x86-64 or aarch64."""
    if why := refusal():
        raise ConfigError(why)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def memory(root: Path = ROOT) -> Memory:
    """The machine's memory, cut down to the container's limit (cgroup v2) where there is one."""
    table: dict[str, int] = {}
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        if (words := rest.split()) and words[0].isdigit():
            table[name] = int(words[0]) * 1024
    total = table.get("MemTotal", 0)
    available = table.get("MemAvailable", table.get("MemFree", 0))
    limit = _number(root / "sys/fs/cgroup/memory.max")
    if limit is not None:
        used = _number(root / "sys/fs/cgroup/memory.current") or 0
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total, available)


def usable_cores() -> int:
    """Cores this process may run on; at least one."""
    return max(1, len(os.sched_getaffinity(0)))


def cpu_name(root: Path = ROOT) -> str:
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "CPU part"):
            return value.strip()
    return platform.machine()


def cpu_features(root: Path = ROOT) -> list[str]:
    """Those instruction sets the kernels care about, of the ones this machine has."""
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            have = set(value.split())
            return [feature for feature in (*_X86, *_ARM) if feature in have]
    return []


def huge_pages(root: Path = ROOT) -> str | None:
    """The kernel's setting for transparent huge pages: "always", "madvise" or "never"."""
    text = _text(root / "sys/kernel/mm/transparent_hugepage/enabled") or ""
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end] if 0 <= start < end else None


def max_map_count(root: Path = ROOT) -> int | None:
    """How many mappings one process may hold."""
    return _number(root / "proc/sys/vm/max_map_count")
