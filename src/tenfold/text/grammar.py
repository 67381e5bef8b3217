"""Constrained output: which tokens a JSON schema, regex or grammar allows next.

A ``GrammarFactory`` belongs to one model's tokeniser and makes a ``Matcher`` for each request. The
grammars are compiled and walked by llguidance, imported only when the first one is compiled. Knows
nothing of logits, sampling or requests. Check what comes from outside with ``validate_constraint``
first: compiling a hostile grammar can hang or crash the process that does it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tenfold.core.errors import InvalidRequest, TenfoldError
from tenfold.core.types import Constraint
from tenfold.text.grammar_check import GRAMMAR_SECONDS, GrammarGate, validate_constraint
from tenfold.text.grammar_source import field_of, grammar_text, panics_refused, refuse

__all__ = [
    "GRAMMAR_SECONDS",
    "ByteTokenizer",
    "GrammarFactory",
    "GrammarGate",
    "Matcher",
    "compile_constraint",
    "validate_constraint",
]

_CACHED_GRAMMARS = 64


class ByteTokenizer(Protocol):
    """What is asked of a tokeniser; ``text.tokenizer.Tokenizer`` is one."""

    vocab_size: int
    eos_ids: list[int]

    @property
    def special_ids(self) -> Collection[int]: ...

    def encode(self, text: str, *, special: bool, parse_special: bool) -> list[int]: ...

    def token_bytes(self, id: int, /) -> bytes: ...


class Matcher:
    """The state of one sequence inside its grammar. Used by one thread at a time.

    ``seconds`` is the processor time that this sequence may still spend on masks and tokens; past
    it, and when llguidance gives up on the grammar, ``mask`` and ``accept`` raise InvalidRequest.
    """

    def __init__(
        self, matcher: Any, vocab_size: int, eos_ids: Collection[int], field: str, seconds: float
    ) -> None:
        self._matcher = matcher
        self._words = np.zeros((vocab_size + 31) // 32, dtype=np.uint32)
        self._eos = frozenset(eos_ids)
        self._field = field
        self._seconds = seconds

    @property
    def words(self) -> int:
        """Length of the bitmask in 32-bit words."""
        return len(self._words)

    @property
    def finished(self) -> bool:
        """Whether the text is complete, so that nothing but an end-of-sequence token may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def accepting(self) -> bool:
        """Whether the text so far matches, although it might go on."""
        return bool(self._matcher.is_accepting())

    def mask(self, out: NDArray[np.uint32]) -> None:
        """Write the allowed tokens: bit ``i % 32`` of word ``i // 32`` for token i.

        ``out`` may be longer than ``words`` (a padded vocabulary): the rest is forbidden.
        """
        began = time.thread_time()
        own = self._words
        with panics_refused(self._field):
            self._matcher.unsafe_compute_mask_ptr(own.ctypes.data, own.nbytes)
        self._check(began)
        count = min(len(own), len(out))
        out[:count] = own[:count]
        out[count:] = 0

    def accept(self, token: int) -> bool:
        """Take ``token`` as the next of the text. False, changing nothing, if it does not fit."""
        if self.finished:
            return token in self._eos
        began = time.thread_time()
        # Unlike consume_token, a refusal here does not leave the matcher broken.
        with panics_refused(self._field):
            taken = bool(self._matcher.try_consume_tokens([token]) == 1)
        self._check(began)
        return taken

    def rollback(self, tokens: int) -> None:
        """Take back the last ``tokens`` accepted tokens; those after ``finished`` never counted."""
        if tokens and not self._matcher.rollback(tokens):
            raise TenfoldError(f"the grammar cannot go back {tokens} tokens")

    def _check(self, began: float) -> None:
        self._seconds -= time.thread_time() - began
        if self._matcher.is_error():
            message = str(self._matcher.get_error())
            if "NoExtension" in message:
                message = "no text matches it"
            refuse(message, self._field)
        if self._seconds < 0:
            raise InvalidRequest(
                f"{self._field} took more processor time than a request may spend on its grammar; "
                "make it simpler",
                param=self._field,
            )


class GrammarFactory:
    """Makes matchers for one model. Safe to share by threads.

    ``seconds`` of processor time may be spent on a request's grammar, compiling included.
    ``eos_ids`` are the ids that end an answer, where the model knows better than its tokeniser.
    """

    def __init__(
        self,
        tokenizer: ByteTokenizer,
        *,
        eos_ids: Sequence[int] | None = None,
        seconds: float = GRAMMAR_SECONDS,
    ) -> None:
        self._tokenizer = tokenizer
        wanted = tokenizer.eos_ids if eos_ids is None else eos_ids
        self._eos_ids = [id for id in wanted if 0 <= id < tokenizer.vocab_size]
        self._seconds = seconds
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._lltokenizer: Any = None

    def prepare(self) -> None:
        """Build the token trie now: under a second for 49k tokens, seconds for 262k."""
        with self._lock:
            self._prepared()

    def compile(self, constraint: Constraint, *, param: str | None = None) -> Matcher:
        """A fresh matcher. Grammars compiled lately are remembered, and then cost microseconds.

        Raises InvalidRequest, blaming ``param``, for a grammar that is wrong or took too long.
        """
        began = time.thread_time()
        field = field_of(constraint, param)
        with self._lock:
            self._prepared()
            template = self._compiled.get(constraint)
            if template is None:
                began = time.thread_time()
                template = self._compile(grammar_text(constraint, param=param), field)
                self._compiled[constraint] = template
                while len(self._compiled) > _CACHED_GRAMMARS:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(constraint)
            copy = template.deep_copy()
        left = self._seconds - (time.thread_time() - began)
        if left < 0:
            raise InvalidRequest(
                f"{field} took more than {self._seconds} s to compile; make it simpler", param=field
            )
        return Matcher(copy, self._lltokenizer.vocab_size, self._eos_ids, field, left)

    def _compile(self, grammar: str, field: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        with panics_refused(field):
            matcher = LLMatcher(self._lltokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            refuse(str(matcher.get_error()), field)
        return matcher

    def _prepared(self) -> Any:
        if self._lltokenizer is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            vocabulary = _Vocabulary(self._tokenizer, self._eos_ids)
            self._lltokenizer = LLTokenizer(
                TokenizerWrapper(vocabulary), eos_token=vocabulary.eos_token_ids
            )
        return self._lltokenizer


class _Vocabulary:
    """The tokeniser in the shape that llguidance's wrapper wants."""

    def __init__(self, tokenizer: ByteTokenizer, eos_ids: list[int]) -> None:
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        if not eos_ids:  # llguidance needs one: an id past the vocabulary is never sampled
            eos_ids = [len(self.tokens)]
            self.tokens.append(b"<eos>")
        self.eos_token_ids = eos_ids
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = None
        self.special_token_ids = sorted({*tokenizer.special_ids, *eos_ids})
        self._tokenizer = tokenizer
        self._by_bytes = {token: id for id, token in enumerate(self.tokens) if token}
        self._longest = max(map(len, self._by_bytes))

    def __call__(self, text: bytes) -> list[int]:
        """Tokens that spell ``text``: the model's own, since what a grammar forces should be
        spelled as the model learned it. Some tokenisers start a text with a space of their own;
        and llguidance may ask for half a character: then the longest tokens that fit."""
        try:
            ids = self._tokenizer.encode(text.decode(), special=False, parse_special=False)
        except UnicodeDecodeError:
            ids = []
        if b"".join(self.tokens[id] for id in ids) == text:
            return ids
        return self._longest_fitting(text)

    def _longest_fitting(self, text: bytes) -> list[int]:
        found: list[int] = []
        at = 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest), at, -1):
                if (id := self._by_bytes.get(text[at:end])) is not None:
                    break
            else:
                break
            found.append(id)
            at = end
        return found


def compile_constraint(
    constraint: Constraint, tokenizer: ByteTokenizer, *, param: str | None = None
) -> Matcher:
    """A matcher made without a factory: for one use, since the token trie is built anew."""
    return GrammarFactory(tokenizer).compile(constraint, param=param)
