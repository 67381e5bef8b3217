"""Compiles one grammar and walks it, as a process of its own that may be killed.

llguidance counts "fuel", not time, and does not count all of it: some grammars of a few hundred
characters compile for ever, take seconds for a token, or run out of stack and end the process. So
a grammar from outside is first tried here. Run by path with a number of processor seconds, the
grammar on standard input; prints one JSON object, ``{"error": null}`` or ``{"error": "message"}``.
Imports nothing of Tenfold, so that it starts fast, and knows nothing of requests or of the model's
real tokeniser.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import threading
import time

STACK_BYTES = 4 << 20
"""Half of a usual thread's stack: what passes here has room to spare where it is used."""

MEMORY_BYTES = 2 << 30
WALKS = 4
WALK_TOKENS = 48
STEP_SECONDS = 0.1


class _Alphabet:
    """A stand-in vocabulary: all bytes, printable pairs, runs of one letter. Ends with its EOS."""

    def __init__(self) -> None:
        printable = [bytes([byte]) for byte in range(32, 127)]
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.tokens += [first + second for first in printable for second in printable]
        self.tokens += [byte * run for byte in printable for run in (4, 8, 16)]
        self.tokens.append(b"<eos>")
        self.eos_token_id = len(self.tokens) - 1
        self.bos_token_id = None
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def trial(grammar: str) -> str | None:
    """Compile ``grammar`` and take random walks. The reason to refuse it, or None."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

    tokenizer = LLTokenizer(TokenizerWrapper(_Alphabet()))
    limits = LLParserLimits(verbose_errors=False)
    start = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if start.is_error():
        return str(start.get_error())
    chooser = random.Random(0)
    for _ in range(WALKS):
        matcher = start.deep_copy()
        for step in range(WALK_TOKENS):
            began = time.thread_time()
            mask = matcher.compute_bitmask()
            token = _choose(mask, chooser)
            if matcher.is_error() or token is None:
                return str(matcher.get_error()) if step else _nothing(matcher.get_error())
            matcher.consume_token(token)
            if matcher.is_error():
                return str(matcher.get_error())
            if time.thread_time() - began > STEP_SECONDS:
                return f"it takes more than {STEP_SECONDS} seconds a token; make it simpler"
            if matcher.is_stopped():
                break
    return None


def _choose(mask: bytes, chooser: random.Random) -> int | None:
    """A random token whose bit is set, least significant bit first."""
    bits = int.from_bytes(mask, "little")
    if not bits:
        return None
    at = chooser.randrange(bits.bit_length())
    above = bits >> at
    return at + (above & -above).bit_length() - 1


def _nothing(error: str) -> str:
    return "no text matches it" if not error or "NoExtension" in error else error


def _main() -> None:
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grammar = sys.stdin.buffer.read().decode()
    found: list[str | None] = []
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=lambda: found.append(trial(grammar)))
    worker.start()
    worker.join()
    if not found:  # the thread died of a panic inside llguidance
        sys.exit(1)
    print(json.dumps({"error": found[0]}))


if __name__ == "__main__":
    _main()
