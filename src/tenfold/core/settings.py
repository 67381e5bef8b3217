"""What a device's worker is set up with. Plain values; ``core.config`` makes them from TOML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True)
class DeviceSettings:
    """One device: a named share of a machine, served by one worker process.

    ``memory_bytes`` 0 takes 60 % of the memory that is free when the worker starts. ``threads`` 0
    takes every core the process may use. ``backend``: "anon", "memfd" or "cuda" pages.
    """

    name: str = "cpu:0"
    memory_bytes: int = 0
    threads: int = 0
    page_bytes: int = 2 << 20
    backend: Literal["anon", "memfd", "cuda"] = "anon"
    block_tokens: int = 16
    kernels_mode: Literal["exact", "fast"] = "exact"
    native: bool = True
    policy: str = "fcfs"
    prefix_cache: bool = True
    max_running: int = 64
    max_step_tokens: int = 2048
    itl_target: float = 0.2
    prefill_share: float = 0.25
    grammar_seconds: float = 10.0
    cache_dir: str = ""
