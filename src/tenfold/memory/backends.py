"""The back ends by name. Each is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tenfold.core.registry import Registry
from tenfold.memory.base import PageBackend


def backends() -> Registry[Callable[..., PageBackend]]:
    """A registry of page back ends: ``anon`` and ``memfd`` for CPUs, ``cuda`` for NVIDIA GPUs."""
    return Registry(
        "memory backend",
        {
            "anon": "tenfold.memory.anon:AnonBackend",
            "memfd": "tenfold.memory.memfd:MemfdBackend",
            "cuda": "tenfold.memory.cuda:CudaBackend",
        },
    )


def open_backend(name: str, page_bytes: int = 2 << 20, **options: Any) -> PageBackend:
    """Make the named back end; ``options`` go to it (``device`` for ``cuda``).

    Raises ConfigError for an unknown name, an unusable page size, or a machine that lacks what the
    back end needs.
    """
    return backends().get(name)(page_bytes, **options)
