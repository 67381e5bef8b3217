"""/v1/completions: its body and its answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tenfold.core.errors import InvalidRequest
from tenfold.core.types import SamplingParams
from tenfold.server.protocol.base import Reply
from tenfold.server.protocol.prompts import Prompts
from tenfold.server.protocol.refused import refused
from tenfold.server.protocol.sampling import SamplingBody
from tenfold.server.protocol.usage import UsageReply

DEFAULT_MAX_TOKENS = 16


class CompletionBody(SamplingBody):
    """One or several prompts to continue. Each makes ``n`` choices, numbered prompt by prompt."""

    prompt: Prompts
    max_tokens: int | None = Field(
        None, ge=1, le=2**31 - 1, description=f"Default {DEFAULT_MAX_TOKENS}."
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = Field(None, description="Put the prompt before each answer.")
    suffix: Annotated[None, *refused("no model served here fills in the middle")] = None
    best_of: Annotated[None, *refused("ask for n choices and pick one")] = None

    def sampling(self) -> SamplingParams:
        """Raises InvalidRequest where two fields contradict."""
        if self.echo and self.logprobs is not None:
            raise InvalidRequest(
                "echo with logprobs is not supported: prompt tokens are not scored", param="echo"
            )
        return self.params(max_tokens=self.max_tokens or DEFAULT_MAX_TOKENS, logprobs=self.logprobs)


class CompletionLogprobs(Reply):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = None


class Completion(Reply):
    """The answer, and (``finish_reason`` null until the end) one ``data:`` line of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply | None = None
