"""A small tokeniser for grammar tests, and a model that writes at random within a grammar."""

from __future__ import annotations

import numpy as np

from tenfold.text.grammar import Matcher

_PIECES = [
    '{"', '"}', '":', '": "', '", "', "name", "true", "false", "null", "12", "ing", " the", "\n",
    "ab", "<tool_call>", "</tool_call>", "arguments", '"city"', "Oslo", "}}", "[]", "]}", "é",
    "🙂", "",
]  # fmt: skip


class Letters:
    """All bytes, some longer pieces, an unused slot, and two ids that end an answer."""

    def __init__(self) -> None:
        self._tokens = [bytes([byte]) for byte in range(256)]
        self._tokens += [piece.encode() for piece in _PIECES]
        self._tokens += [b"<|im_end|>", b"<|endoftext|>"]
        self.vocab_size = len(self._tokens)
        self.eos_ids = [self.vocab_size - 2, self.vocab_size - 1]
        self.special_ids = {self.vocab_size - 2}

    def encode(self, text: str, *, special: bool = True, parse_special: bool = True) -> list[int]:
        return list(text.encode())

    def token_bytes(self, id: int, /) -> bytes:
        return self._tokens[id]

    def id_of(self, piece: str) -> int:
        return self._tokens.index(piece.encode())

    def text(self, ids: list[int]) -> str:
        return b"".join(self._tokens[id] for id in ids if id not in self.eos_ids).decode()


def allowed(matcher: Matcher) -> set[int]:
    words = np.zeros(matcher.words, dtype=np.uint32)
    matcher.mask(words)
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def wander(matcher: Matcher, tokenizer: Letters, seed: int, limit: int = 400) -> str | None:
    """Text of random allowed tokens, until the grammar is complete. None if that takes too long.

    Tokens that end an answer are taken as soon as they are allowed, now and then.
    """
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    for _ in range(limit):
        choices = sorted(allowed(matcher))
        ends = [id for id in choices if id in tokenizer.eos_ids]
        token = ends[0] if ends and rng.random() < 0.3 else int(rng.choice(choices))
        assert matcher.accept(token)
        ids.append(token)
        if matcher.finished:
            return tokenizer.text(ids)
    return None
