"""One call in flight: engine tokens become text, tool calls and reasoning, choice by choice.

Knows nothing of workers or queues; ``Service`` feeds it token outputs and forwards what it yields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tenfold.core.messages import TokenOutput
from tenfold.core.types import FinishReason, SamplingParams, TokenLogprob
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    GenerateRequest,
    LogprobEntry,
    ToolCallDelta,
)
from tenfold.text.detokenize import IncrementalDetokenizer
from tenfold.text.stop import StopStrings
from tenfold.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tenfold.text.parsers.base import ReasoningParser, ToolParser


@dataclass(slots=True)
class Parsers:
    """Fresh parsers for one choice; None where nothing is to be parsed."""

    tools: ToolParser | None = None
    reasoning: ReasoningParser | None = None


class ChoiceStream:
    """The text side of one choice of a call."""

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        prompt: list[int],
        tokenizer: Tokenizer,
        parsers: Parsers,
    ) -> None:
        self.index = index
        self.sampling: SamplingParams = request.sampling
        self.tokenizer = tokenizer
        self.parsers = parsers
        self.keep_special = parsers.tools is not None
        self.detokenizer = IncrementalDetokenizer(
            tokenizer, prompt[-16:], skip_special=not self.keep_special
        )
        self.stops = StopStrings(request.sampling.stop)
        self.generated = 0
        self.called = False
        self.ended = False

    def push(self, output: TokenOutput) -> Iterator[Delta | ChoiceEnd]:
        """Turn one engine output into deltas. After ChoiceEnd the choice takes nothing more;
        if the engine had not finished by itself (a stop string), the caller aborts it."""
        if self.ended:
            return
        if self.sampling.stop and len(output.token_ids) > 1:
            # A stop string ends the choice at the token that completes it; those behind it in the
            # same step never were.
            for one in _singly(output):
                yield from self.push(one)
            return
        # Tokens before the last of ``min_tokens`` can end nothing: their text is not looked at.
        free = max(0, self.sampling.min_tokens - 1 - self.generated)
        self.generated += len(output.token_ids)
        stop_id = self._stop_id(output)
        visible = output.token_ids[:-1] if stop_id is not None else output.token_ids
        unmatched = self.detokenizer.push(visible[:free]) if free else ""
        text = self.detokenizer.push(visible[free:])
        if output.finish:
            text += self.detokenizer.flush()
        cut = self.stops.push(text)
        emitted, matched = unmatched + cut.text, cut.matched
        if output.finish and matched is None:
            emitted += self.stops.flush()
        over = output.finish is not None or matched is not None
        delta = self._parse(emitted, over)
        delta.token_ids = output.token_ids
        delta.logprobs = self._logprobs(output.logprobs)
        if delta.text or delta.reasoning or delta.tool_calls or delta.token_ids:
            yield delta
        if over:
            self.ended = True
            yield self._end("stop" if matched is not None else output.finish, matched, stop_id)

    def _stop_id(self, output: TokenOutput) -> int | None:
        """The end-of-sequence or stop id that ended the choice: it never becomes text."""
        if output.finish != "stop" or not output.token_ids:
            return None
        last = output.token_ids[-1]
        if last in self.sampling.stop_token_ids or last in self.tokenizer.eos_ids:
            return last
        return None

    def _parse(self, text: str, over: bool) -> Delta:
        delta = Delta(self.index, text)
        if self.parsers.reasoning is not None:
            split = self.parsers.reasoning.push(text)
            delta.reasoning, delta.text = split.reasoning, split.content
            if over:
                rest = self.parsers.reasoning.flush()
                delta.reasoning += rest.reasoning
                delta.text += rest.content
        if self.parsers.tools is not None:
            parsed = self.parsers.tools.push(delta.text)
            delta.text, calls = parsed.content, list(parsed.tool_calls)
            if over:
                rest_parsed = self.parsers.tools.flush()
                delta.text += rest_parsed.content
                calls += rest_parsed.tool_calls
            delta.tool_calls = [ToolCallDelta(c.index, c.id, c.name, c.arguments) for c in calls]
            self.called = self.called or bool(calls)
        return delta

    def _end(
        self, finish: FinishReason | None, matched: str | None, stop_id: int | None
    ) -> ChoiceEnd:
        reason: FinishReason | Literal["tool_calls"] = finish or "stop"
        if self.called and reason == "stop":
            reason = "tool_calls"
        if matched is not None:
            return ChoiceEnd(self.index, reason, matched)
        named = stop_id if stop_id in self.sampling.stop_token_ids else None
        return ChoiceEnd(self.index, reason, named)

    def _logprobs(self, found: list[TokenLogprob] | None) -> list[LogprobEntry] | None:
        if found is None:
            return None
        return [
            self._entry(one.token_id, one.logprob, [self._entry(t, p, []) for t, p in one.top])
            for one in found
        ]

    def _entry(self, token: int, logprob: float, top: list[LogprobEntry]) -> LogprobEntry:
        raw = self.tokenizer.token_bytes(token)
        return LogprobEntry(raw.decode("utf-8", "replace"), token, list(raw), logprob, top)


def _singly(output: TokenOutput) -> Iterator[TokenOutput]:
    """The same tokens as outputs of one token each."""
    last = len(output.token_ids) - 1
    for i, token in enumerate(output.token_ids):
        yield TokenOutput(
            output.request_id,
            [token],
            output.finish if i == last else None,
            output.logprobs[i : i + 1] if output.logprobs else None,
            output.cached_tokens if i == 0 else 0,
        )


def wants_tools(prompt: object) -> bool:
    return isinstance(prompt, ChatPrompt) and bool(prompt.tools) and prompt.tool_choice != "none"
