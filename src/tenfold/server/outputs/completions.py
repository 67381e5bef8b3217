"""Text completions as OpenAI sends them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tenfold.core.types import Usage
from tenfold.fleet.types import ChoiceEnd, Delta, LogprobEntry
from tenfold.server.outputs.base import CollectedChoice, Head, finite
from tenfold.server.protocol.usage import usage_dict


class CompletionWriter:
    """``echoes``: the text to put before each choice (empty without ``echo``)."""

    def __init__(
        self, head: Head, echoes: list[str], *, include_usage: bool, top_logprobs: bool
    ) -> None:
        self._head = head
        self._echoes = echoes
        self.include_usage = include_usage
        self._top_logprobs = top_logprobs
        self._offsets = [len(echo) for echo in echoes]

    def opening(self) -> Iterator[dict[str, Any]]:
        for index, echo in enumerate(self._echoes):
            if echo:
                yield self._chunk(index, echo)

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        if not delta.text and not delta.logprobs:
            return None
        return self._chunk(delta.index, delta.text, logprobs=delta.logprobs)

    def end(self, end: ChoiceEnd) -> dict[str, Any]:
        return self._chunk(end.index, "", finish=end.finish, stop_reason=end.stop_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        return {**self._top(), "choices": [], "usage": usage_dict(usage)}

    def whole(self, choices: list[CollectedChoice], usage: Usage) -> dict[str, Any]:
        made = [
            self._choice(
                index,
                self._echoes[index] + choice.text,
                choice.logprobs,
                choice.finish,
                choice.stop_reason,
            )
            for index, choice in enumerate(choices)
        ]
        return {**self._top(), "choices": made, "usage": usage_dict(usage)}

    def _chunk(
        self,
        index: int,
        text: str,
        *,
        logprobs: list[LogprobEntry] | None = None,
        finish: str | None = None,
        stop_reason: str | int | None = None,
    ) -> dict[str, Any]:
        choice = self._choice(index, text, logprobs, finish, stop_reason)
        chunk = {**self._top(), "choices": [choice]}
        if self.include_usage:
            chunk["usage"] = None
        return chunk

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: list[LogprobEntry] | None,
        finish: str | None,
        stop_reason: str | int | None,
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": None if logprobs is None else self._logprobs(index, logprobs),
            "finish_reason": finish,
            "stop_reason": stop_reason,
        }

    def _top(self) -> dict[str, Any]:
        head = self._head
        return {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
        }

    def _logprobs(self, index: int, entries: list[LogprobEntry]) -> dict[str, Any]:
        """OpenAI's four parallel lists. Offsets count characters of the choice's tokens so far."""
        offsets = []
        for entry in entries:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(entry.token)
        top = None
        if self._top_logprobs:
            top = [{rival.token: finite(rival.logprob) for rival in e.top} for e in entries]
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "top_logprobs": top,
            "text_offset": offsets,
        }
