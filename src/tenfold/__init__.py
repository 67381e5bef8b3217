"""Tenfold serves many language models to many clients from few devices.

    from tenfold import LLM, SamplingParams, connect

``LLM`` runs models in this process; ``connect`` talks to a running server. Names are imported when
they are first used: ``import tenfold`` costs nothing, and only ``LLM`` brings torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.client import connect
    from tenfold.client.llm import LLM
    from tenfold.core.errors import (
        ConfigError,
        Conflict,
        ContextTooLong,
        DeadlineExceeded,
        DeviceError,
        Forbidden,
        InvalidRequest,
        ModelFileError,
        ModelNotFound,
        NotFound,
        OutOfMemory,
        Overloaded,
        PullError,
        RateLimited,
        TenfoldError,
        TooLarge,
        Unauthorized,
        Unavailable,
        UnsupportedMedia,
        WorkerLost,
    )
    from tenfold.core.types import Constraint, SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "ConfigError",
    "Conflict",
    "Constraint",
    "ContextTooLong",
    "DeadlineExceeded",
    "DeviceError",
    "Forbidden",
    "InvalidRequest",
    "ModelFileError",
    "ModelNotFound",
    "NotFound",
    "OutOfMemory",
    "Overloaded",
    "PullError",
    "RateLimited",
    "SamplingParams",
    "TenfoldError",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMedia",
    "WorkerLost",
    "__version__",
    "connect",
]

_HOMES = {
    "LLM": "tenfold.client.llm",
    "connect": "tenfold.client",
    "Constraint": "tenfold.core.types",
    "SamplingParams": "tenfold.core.types",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tenfold' has no attribute {name!r}")
    if name == "LLM":
        from tenfold.core.machine import require_supported

        # Said here, before an import deep in the engine fails in words nobody understands.
        require_supported()
    return getattr(import_module(_HOMES.get(name, "tenfold.core.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
