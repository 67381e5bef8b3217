"""How the pieces of a vocabulary become text: the decoders of ``tokenizers``, one piece at a time.

``tokenizers`` decodes a whole list at once; streaming needs the same text in parts. A ``Spelling``
says what one token stands for, a ``Joiner`` keeps the state between tokens. Three ways occur:

- *bytes*: tokens are bytes, the text is their UTF-8, invalid parts replaced (byte-level BPE);
- *fallback*: tokens are text or single bytes; a run of byte tokens is text when all of it is valid
  UTF-8, and otherwise one U+FFFD a byte, however valid a part of it was (SentencePiece BPE);
- *words*: a token's text depends only on whether it is the first (WordPiece, Metaspace, none).

Knows nothing of special tokens, ids or streams of requests.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import tokenizers

from tenfold.core.errors import ModelFileError
from tenfold.text.bytelevel import spelled_bytes

REPLACEMENT = "\ufffd"
_ANCHOR = "x"


class Word(NamedTuple):
    """A token's text at the start, and after other tokens."""

    first: str
    later: str


Piece = bytes | str | Word
"""bytes: raw bytes of any length; str: whole text, wherever it stands."""


class Joiner(Protocol):
    """Joins pieces in order. ``add`` returns text that no later piece can change."""

    def add(self, pieces: Iterable[Piece]) -> str: ...

    def end(self) -> str:
        """What was held back, as it reads when nothing follows. The joiner is spent."""
        ...


@dataclass(slots=True, frozen=True)
class Spelling:
    """One tokenizer's way of writing. ``strip``: leading spaces dropped from the whole text."""

    kind: Literal["bytes", "fallback", "words"]
    replacements: tuple[tuple[str, str], ...] = ()
    strip: int = 0
    decoder: tokenizers.decoders.Decoder | None = None

    def piece(self, token: str) -> Piece:
        if self.kind == "bytes":
            raw = spelled_bytes(token)
            return token.encode() if raw is None else raw
        if self.kind == "fallback":
            return self._fallback_piece(token)
        return Word(self._decode([token]), self._decode([_ANCHOR, token])[len(_ANCHOR) :])

    def joiner(self) -> Joiner:
        if self.kind == "bytes":
            return _ByteJoiner()
        if self.kind == "fallback":
            return _FallbackJoiner(self.strip)
        return _WordJoiner()

    def _fallback_piece(self, token: str) -> Piece:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token

    def _decode(self, tokens: list[str]) -> str:
        return " ".join(tokens) if self.decoder is None else self.decoder.decode(tokens)


def spelling_of(backend: tokenizers.Tokenizer) -> Spelling:
    """Raises ModelFileError for a decoder whose text cannot be made in parts here."""
    decoder = backend.decoder
    if decoder is None:
        return Spelling("words")
    config = json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = config["decoders"] if config["type"] == "Sequence" else [config]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return Spelling("bytes")
    if kinds in (["WordPiece"], ["Metaspace"]):
        return Spelling("words", decoder=decoder)
    spelling = _fallback_spelling(steps)
    if spelling is None:
        raise ModelFileError(f"the tokenizer's decoder {kinds} is not one that can be streamed")
    return spelling


def _fallback_spelling(steps: list[dict[str, Any]]) -> Spelling | None:
    """Replace…, ByteFallback, Fuse, then perhaps Strip on the left: Llama's and Gemma's order."""
    kinds = [step["type"] for step in steps]
    count = kinds.index("ByteFallback") if "ByteFallback" in kinds else -1
    if kinds[count:] not in (["ByteFallback", "Fuse"], ["ByteFallback", "Fuse", "Strip"]):
        return None
    if any(step["type"] != "Replace" or "String" not in step["pattern"] for step in steps[:count]):
        return None
    strip = steps[-1] if kinds[-1] == "Strip" else {}
    if strip.get("content", " ") != " " or strip.get("stop", 0):
        return None
    pairs = tuple((step["pattern"]["String"], step["content"]) for step in steps[:count])
    return Spelling("fallback", pairs, strip.get("start", 0))


class _ByteJoiner:
    __slots__ = ("_utf8",)

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, pieces: Iterable[Piece]) -> str:
        return self._utf8.decode(b"".join(pieces))  # type: ignore[arg-type]

    def end(self) -> str:
        return self._utf8.decode(b"", True)


class _FallbackJoiner:
    """Holds a run of byte tokens back until it ends: an invalid byte spoils the whole run."""

    __slots__ = ("_run", "_strip")

    def __init__(self, strip: int) -> None:
        self._run = bytearray()
        self._strip = strip

    def add(self, pieces: Iterable[Piece]) -> str:
        out = []
        for piece in pieces:
            if isinstance(piece, bytes):
                self._run += piece
                continue
            if self._run:
                out.append(self._close())
            assert isinstance(piece, str)
            out.append(piece)
        return self._stripped("".join(out))

    def end(self) -> str:
        return self._stripped(self._close())

    def _close(self) -> str:
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        spaces = min(len(text) - len(text.lstrip(" ")), self._strip)
        self._strip = self._strip - spaces if spaces == len(text) else 0
        return text[spaces:]


class _WordJoiner:
    __slots__ = ("_started",)

    def __init__(self) -> None:
        self._started = False

    def add(self, pieces: Iterable[Piece]) -> str:
        out = []
        for piece in pieces:
            assert isinstance(piece, Word)
            out.append(piece.later if self._started else piece.first)
            self._started = True
        return "".join(out)

    def end(self) -> str:
        return ""
