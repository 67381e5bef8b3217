"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed


def version() -> str:
    """As in the package's metadata; "unknown" in a source tree that was never installed."""
    try:
        return installed("tenfold")
    except PackageNotFoundError:
        return "unknown"
