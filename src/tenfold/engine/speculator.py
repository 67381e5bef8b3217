"""Drafts of one model's decoding sequences: which slices of a step carry guessed tokens.

Puts together a drafter, the record of how good its guesses were, the cost model and the key-value
blocks that are free. Knows nothing of how guesses are verified.
"""

from __future__ import annotations

from tenfold.core.errors import ConfigError
from tenfold.core.settings import Speculation
from tenfold.costs.step import StepModel
from tenfold.engine.sequence import Sequence, Slice
from tenfold.kvcache.cache import KVCache
from tenfold.scheduling.drafting import NewDrafter, NgramDrafter
from tenfold.scheduling.speculation import (
    Acceptance,
    Guess,
    Track,
    draft_lengths,
    probe,
    share_out,
)

PROBE_STEPS = 64
"""Steps with a guess and without a draft after which one is verified all the same."""

PROBE_RATE = 0.3
"""Guesses that are right less often than this are not worth a look at what they would cost."""


class Speculator:
    """Adds drafts to decoding slices, and learns from the tokens that come.

    ``always`` verifies every guess; otherwise only what should make the step bring more tokens a
    second, by the step model's costs and the share of guesses that were right.
    """

    def __init__(self, new_drafter: NewDrafter, most: int, *, always: bool) -> None:
        self.drafted = 0
        self.accepted = 0
        self._new_drafter = new_drafter
        self._most = most
        self._always = always
        self._overall = Acceptance()
        self._idle = 0

    def add(
        self,
        slices: list[Slice],
        cache: KVCache,
        steps: StepModel,
        *,
        seconds: float,
        limit: float,
        room: int,
    ) -> None:
        """Give some of the decoding ``slices`` a draft, and the blocks for it.

        ``seconds``: predicted for the slices as they are; ``limit``: for the step at most;
        ``room``: tokens that may be added. Nobody is preempted for a guess, and no other model's
        cache shrinks for one."""
        guesses = [self._guess(piece.seq, steps) for piece in slices]
        if self._always:
            lengths = share_out([guess.length for guess in guesses], room)
        else:
            lengths = self._worth(guesses, seconds, limit, room)
        for piece, length in zip(slices, lengths, strict=True):
            seq = piece.seq
            assert seq.track is not None and seq.kv is not None
            if length and cache.reserve(seq.kv, seq.tokens.length + length):
                piece.draft = seq.track.expected[:length]
                piece.count += length

    def saw(self, seq: Sequence, token: int) -> None:
        """A sequence got its next token."""
        right = None if seq.track is None else seq.track.saw(token)
        if right is not None:
            self._overall.saw(right)

    def verified(self, piece: Slice, tokens: list[int]) -> None:
        """The slice was computed and its sequence got ``tokens``."""
        self.drafted += len(piece.draft)
        self.accepted += sum(a == b for a, b in zip(tokens, piece.draft, strict=False))

    def _guess(self, seq: Sequence, steps: StepModel) -> Guess:
        if seq.track is None:
            seq.track = Track(self._new_drafter())
        # The step that verifies a guess chooses one token more.
        most = max(0, min(self._most, seq.limit - seq.tokens.length - 1))
        found = seq.track.propose(seq.tokens.view(), most)
        rate = seq.track.acceptance.rate(self._overall.rate(0.5))
        return Guess(len(found), rate, steps.draft_seconds(seq.tokens.length))

    def _worth(self, guesses: list[Guess], seconds: float, limit: float, room: int) -> list[int]:
        lengths = draft_lengths(
            guesses, tokens=len(guesses), seconds=seconds, room=room, limit=limit
        )
        self._idle = 0 if any(lengths) else self._idle + any(g.length for g in guesses)
        if self._idle >= PROBE_STEPS:
            self._idle = 0
            wanted = probe(guesses, PROBE_RATE)
            return wanted if sum(wanted) <= room else lengths
        return lengths


def speculator(mode: Speculation, draft_tokens: int, draft_match: int) -> Speculator | None:
    """What a model of these settings drafts with; None: nothing. Raises ConfigError."""
    if mode == "off":
        return None
    if mode not in ("ngram", "auto"):
        raise ConfigError(f'speculation is {mode!r}; it must be "off", "ngram" or "auto"')
    if draft_tokens < 1 or draft_match < 1:
        raise ConfigError(
            f"draft_tokens is {draft_tokens} and draft_match {draft_match}; both must be 1 or more"
        )
    return Speculator(
        lambda: NgramDrafter(draft_match, min(2, draft_match)),
        draft_tokens,
        always=mode == "ngram",
    )
