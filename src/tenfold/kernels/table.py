"""Chooses a column of the kernel table: native where the extension is there, else torch.

Knows nothing of what the operations compute.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Literal

from tenfold.core.errors import ConfigError
from tenfold.core.registry import Registry
from tenfold.kernels.base import Kernels

Mode = Literal["exact", "fast"]


def columns() -> Registry[Callable[[int, str, Mode, str], Kernels]]:
    """The columns by name; each is made with (threads, why it was chosen, mode, arch)."""
    return Registry(
        "kernel column",
        {
            "native": "tenfold.kernels.table:native_column",
            "torch": "tenfold.kernels.table:torch_column",
            "triton": "tenfold.kernels.table:triton_column",
        },
    )


def build_kernels(
    *,
    native: bool | None = None,
    mode: Mode = "exact",
    threads: int = 0,
    arch: str = "",
) -> Kernels:
    """The kernels to use. Raises ConfigError where they cannot be had.

    ``native``: True insists on the compiled extension, False on torch, None takes native where it
    imports. ``threads`` 0 takes every core that this process may use; the torch column keeps
    torch's own setting, which belongs to the process. ``mode`` "fast" rounds the activations of
    quantised products to integers (torch_fast.py); without the extension it is slower than exact.
    ``arch`` forces a row of the native kernels by name, empty for the best one of this machine.
    """
    if mode not in ("exact", "fast"):
        raise ConfigError(f"kernels.mode must be exact or fast, not {mode!r}")
    if threads < 0:
        raise ConfigError(f"threads must be 0 (every core) or more, not {threads}")
    count = threads or len(os.sched_getaffinity(0))
    if native is False:
        return columns().get("torch")(count, "as asked", mode, arch)
    try:
        return columns().get("native")(count, "", mode, arch)
    except ImportError as exc:
        if native:
            raise ConfigError(
                f"native kernels were asked for, but the compiled extension does not import: {exc}"
            ) from exc
        return columns().get("torch")(count, f"no compiled extension: {exc}", mode, arch)


def native_column(threads: int, reason: str, mode: Mode, arch: str) -> Kernels:
    """Raises ImportError where ``tenfold._native`` was not built or does not load, ConfigError
    where this machine has no row named ``arch``."""
    from tenfold.kernels.checks import ShapeError
    from tenfold.kernels.native import NativeKernels

    try:
        return NativeKernels(extension(), threads, arch, mode)
    except ShapeError as exc:
        raise ConfigError(f"kernels.arch = {arch}: {exc}") from exc


def torch_column(threads: int, reason: str, mode: Mode, arch: str) -> Kernels:
    if mode == "fast":
        from tenfold.kernels.torch_fast import TorchFastKernels

        return TorchFastKernels(reason)
    from tenfold.kernels.torch_ref import TorchKernels

    return TorchKernels(reason)


def triton_column(threads: int, reason: str, mode: Mode, arch: str) -> Kernels:
    """bf16 on the current CUDA device. Raises ImportError where Triton is not installed."""
    from tenfold.kernels.triton_column import TritonKernels

    return TritonKernels()


def extension() -> ModuleType:
    """The compiled module, or ImportError."""
    return import_module("tenfold._native")
