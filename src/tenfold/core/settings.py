"""What a device's worker is set up with. Plain values; ``core.config`` makes them from TOML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.core.types import KVDtype

Speculation = Literal["off", "ngram", "auto"]


@dataclass(slots=True)
class DeviceSettings:
    """One device: a named share of a machine, served by one worker process. "cuda:N" is a GPU.

    ``memory_bytes`` 0 takes 60 % of the memory that is free when the worker starts. ``threads`` 0
    takes every core the process may use. ``backend``: "anon" or "memfd" pages; a GPU has its own,
    and with ``memory_bytes`` 0 80 % of its free memory. ``cuda_dtype`` is the type of a GPU's
    weights, keys and values; decode graphs may take ``cuda_graph_bytes`` beside the pool.
    ``speculation``: whether steps verify guessed tokens: never, always ("ngram"), or where it pays
    ("auto"); ``draft_tokens`` is the longest guess, ``draft_match`` the longest run of tokens that
    is looked up for one.
    """

    name: str = "cpu:0"
    memory_bytes: int = 0
    threads: int = 0
    page_bytes: int = 2 << 20
    backend: Literal["anon", "memfd", "cuda"] = "anon"
    block_tokens: int = 16
    kv_dtype: KVDtype | Literal["auto"] = "auto"
    kernels_mode: Literal["exact", "fast"] = "fast"
    native: bool = True
    kernels_arch: str = ""
    policy: str = "fcfs"
    prefix_cache: bool = True
    max_running: int = 64
    max_step_tokens: int = 2048
    itl_target: float = 0.2
    prefill_share: float = 0.25
    speculation: Speculation = "off"
    draft_tokens: int = 8
    draft_match: int = 3
    grammar_seconds: float = 10.0
    cache_dir: str = ""
    cuda_dtype: Literal["bf16", "f16", "f32"] = "bf16"
    cuda_graphs: bool = True
    cuda_graph_bytes: int = 2 << 30


@dataclass(slots=True)
class ModelSetup:
    """A model to serve: the ``name`` clients ask for, and the ``source`` the store resolves.

    ``pin`` keeps it loaded. None leaves a value to the checkpoint or the device.
    """

    name: str
    source: str
    pin: bool = False
    context_length: int | None = None
    kv_limit_bytes: int | None = None
    policy: str | None = None
    kv_dtype: KVDtype | None = None
    speculation: Speculation | None = None


@dataclass(slots=True)
class QueueSettings:
    """How many requests, and prompt tokens, may wait: in all, and of one client."""

    max_requests: int = 1024
    max_tokens: int = 1 << 20
    client_requests: int = 512
    client_tokens: int = 1 << 19


@dataclass(slots=True)
class ClientSettings:
    """A client known by the sha256 of its key. None takes the queue's limits of one client."""

    name: str
    key_sha256: str
    weight: float = 1.0
    max_requests: int | None = None
    max_tokens: int | None = None
