"""What ``import tenfold`` promises."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tenfold
from tenfold.core import errors

ROOT = Path(__file__).parent.parent


def test_the_public_names() -> None:
    """Changing this list is changing the public interface: say so in CHANGELOG.md."""
    assert tenfold.__all__ == [
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
    for name in tenfold.__all__:
        assert getattr(tenfold, name) is not None
    assert set(tenfold.__all__) <= set(dir(tenfold))
    assert not hasattr(tenfold, "nonsense")


def test_every_error_is_public() -> None:
    def below(cls: type[errors.TenfoldError]) -> set[str]:
        return {cls.__name__}.union(*(below(sub) for sub in cls.__subclasses__()))

    own = {name for name in below(errors.TenfoldError) if hasattr(errors, name)}
    assert own <= set(tenfold.__all__)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tenfold.__version__ == project["version"]


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, tenfold; from tenfold import SamplingParams, ConfigError; "
        "print([m for m in ('torch', 'numpy', 'pydantic', 'httpx') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_other_systems_are_refused_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(tenfold.ConfigError, match="Linux"):
        _ = tenfold.LLM
