"""Names of served models, and how a command line writes one: ``source`` or ``name=source``.

Knows nothing of which catalogue entries, files or repositories exist.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tenfold.core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


class ModelArgument(NamedTuple):
    """A model to serve: the ``name`` clients ask for, and the ``source`` it comes from."""

    name: str
    source: str


def check_name(name: str) -> str:
    """``name`` itself. Raises ConfigError where it holds more than letters, digits and ``. _ / -``.

    ``:`` and ``+`` stay free, since adapters and strategies are written with them.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name!r} cannot name a model: use letters, digits, '.', '_', '-' and '/', "
            "and begin with a letter or a digit"
        )
    return name


def name_of(source: str) -> str:
    """The name a source gets when nobody says one: catalogue name, file stem or repository."""
    last = source.rstrip("/").rsplit("/", 1)[-1]
    if source.startswith("hf:"):
        last = last.removeprefix("hf:").partition("@")[0]
    return last.removesuffix(".gguf")


def split_model(text: str) -> ModelArgument:
    """Read ``source`` or ``name=source``. A text that is an existing path is never split."""
    name, equals, source = text.partition("=")
    if equals and _NAME.fullmatch(name) and not Path(text).exists():
        if not source:
            raise ConfigError(f"{text!r} names no source after '='")
        return ModelArgument(name, source)
    return ModelArgument(check_name(name_of(text)), text)
