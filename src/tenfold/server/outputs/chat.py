"""Chat completions as OpenAI sends them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tenfold.core.types import Usage
from tenfold.fleet.types import ChoiceEnd, Delta, LogprobEntry, ToolCallDelta
from tenfold.server.outputs.base import CollectedChoice, Head, finite
from tenfold.server.protocol.usage import usage_dict


class ChatWriter:
    """``include_usage`` puts ``"usage": null`` into every chunk but the last, as OpenAI does."""

    def __init__(self, head: Head, choices: int, *, include_usage: bool, logprobs: bool) -> None:
        self._head = head
        self._choices = choices
        self.include_usage = include_usage
        self._logprobs = logprobs

    def opening(self) -> Iterator[dict[str, Any]]:
        for index in range(self._choices):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        shown: dict[str, Any] = {}
        if delta.reasoning:
            shown["reasoning_content"] = delta.reasoning
        if delta.text or (delta.logprobs and not shown and not delta.tool_calls):
            shown["content"] = delta.text
        if delta.tool_calls:
            shown["tool_calls"] = [_call_delta(call) for call in delta.tool_calls]
        if not shown:
            return None
        return self._chunk(delta.index, shown, logprobs=delta.logprobs)

    def end(self, end: ChoiceEnd) -> dict[str, Any]:
        return self._chunk(end.index, {}, finish=end.finish, stop_reason=end.stop_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        return {**self._top(), "choices": [], "usage": usage_dict(usage)}

    def whole(self, choices: list[CollectedChoice], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._head.id,
            "object": "chat.completion",
            "created": self._head.created,
            "model": self._head.model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_dict(usage),
        }

    def _choice(self, index: int, choice: CollectedChoice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for _, call in sorted(choice.calls.items())
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs_dict(choice.logprobs or []) if self._logprobs else None,
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: list[LogprobEntry] | None = None,
        finish: str | None = None,
        stop_reason: str | int | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs_dict(logprobs) if logprobs else None,
            "finish_reason": finish,
        }
        if stop_reason is not None:
            choice["stop_reason"] = stop_reason
        chunk = {**self._top(), "choices": [choice]}
        if self.include_usage:
            chunk["usage"] = None
        return chunk

    def _top(self) -> dict[str, Any]:
        head = self._head
        return {
            "id": head.id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
        }

    def _logprobs_dict(self, entries: list[LogprobEntry]) -> dict[str, Any]:
        return {
            "content": [
                {**_logprob(entry), "top_logprobs": [_logprob(rival) for rival in entry.top]}
                for entry in entries
            ]
        }


def _logprob(entry: LogprobEntry) -> dict[str, Any]:
    return {"token": entry.token, "logprob": finite(entry.logprob), "bytes": entry.bytes}


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    """OpenAI sends id, type and name once, then only pieces of the arguments."""
    function: dict[str, Any] = {}
    if call.name is not None:
        function["name"] = call.name
    function["arguments"] = call.arguments
    shown: dict[str, Any] = {"index": call.index}
    if call.id is not None:
        shown |= {"id": call.id, "type": "function"}
    return {**shown, "function": function}
