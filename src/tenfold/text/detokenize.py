"""Token ids to text as they come, a few at a time. Knows nothing of stop strings or requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tenfold.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """The text of a growing list of tokens, in parts that are never taken back.

    All parts joined, with ``flush``, equal ``tokenizer.decode`` of all tokens, however they were
    cut. A character that is spread over tokens comes whole, with its last token; U+FFFD comes only
    for bytes that can no longer become one. Costs O(1) a token.

    ``prompt_tail`` is the end of the prompt, which the tokens continue: its text is not emitted,
    but it decides whether a leading space is part of the text, and completes its own last
    character. Not for use by several threads at once.
    """

    __slots__ = ("_joiner", "_skip_special", "_tokenizer")

    def __init__(
        self, tokenizer: Tokenizer, prompt_tail: Sequence[int] = (), *, skip_special: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._joiner = tokenizer.joiner()
        self.push(prompt_tail)

    def push(self, ids: Iterable[int]) -> str:
        """Text that ``ids`` settled: perhaps none, perhaps that of earlier tokens too."""
        return self._joiner.add(self._tokenizer.pieces(ids, skip_special=self._skip_special))

    def flush(self) -> str:
        """The held-back rest, once no token follows: U+FFFD for what stayed incomplete."""
        return self._joiner.end()
