"""Messages as bytes on a stream: length, kind, msgpack body. Both ends run the same version.

Knows nothing of the socket that carries them.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any, get_args

import msgspec

from tenfold.core.messages import Command, Event

_HEADER = Struct("<IB")
"""Bytes of the body, and the message's place in ``_TYPES``."""
_TYPES = (*get_args(Command), *get_args(Event))
_KINDS = {kind: number for number, kind in enumerate(_TYPES)}
_encoder = msgspec.msgpack.Encoder()
_decoders = tuple(msgspec.msgpack.Decoder(kind) for kind in _TYPES)


def encode(message: Command | Event) -> bytes:
    """The message as one piece of a stream."""
    body = _encoder.encode(message)
    return _HEADER.pack(len(body), _KINDS[type(message)]) + body


class Inbox:
    """The receiving end of a stream: bytes in pieces of any size, whole messages out."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> Iterator[Any]:
        """The messages that ``data``, what came after the last piece, makes complete."""
        if self._rest:
            data = self._rest + data
        view, at = memoryview(data), 0
        while len(data) - at >= _HEADER.size:
            size, kind = _HEADER.unpack_from(data, at)
            end = at + _HEADER.size + size
            if end > len(data):
                break
            self._rest = data[end:]
            yield _decoders[kind].decode(view[at + _HEADER.size : end])
            at = end
        self._rest = data[at:]
