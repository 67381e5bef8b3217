"""Messages as bytes: a class name and a msgpack body. Both ends run the same version."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from tenfold.core import messages


@cache
def _decoder(name: str) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(getattr(messages, name))


_encoder = msgspec.msgpack.Encoder()


def encode(message: messages.Command | messages.Event) -> list[bytes]:
    """Two ZeroMQ frames: the message's class name, its fields."""
    return [type(message).__name__.encode(), _encoder.encode(message)]


def decode(frames: list[bytes]) -> Any:
    return _decoder(frames[0].decode()).decode(frames[1])
