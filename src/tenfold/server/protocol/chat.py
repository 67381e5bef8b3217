"""/v1/chat/completions: its body and its answers.

Knows nothing of how an answer is made; ``outputs/chat.py`` writes it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tenfold.core.errors import InvalidRequest
from tenfold.core.types import SamplingParams
from tenfold.fleet.types import ChatPrompt
from tenfold.server.protocol.base import TOKEN_ID_MAX, Reply
from tenfold.server.protocol.messages import Message, NamedToolChoice, Tool, ToolChoice
from tenfold.server.protocol.refused import refused
from tenfold.server.protocol.sampling import SamplingBody
from tenfold.server.protocol.usage import UsageReply

# What the template itself passes: a body may not overwrite it through chat_template_kwargs.
RESERVED_KWARGS = frozenset({"messages", "tools", "documents"})


class ChatBody(SamplingBody):
    """A conversation, and how to answer it."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=TOKEN_ID_MAX, description="The same as max_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Only with logprobs.")
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = Field(
        None, description='"auto" where there are tools, else "none".'
    )
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Further variables for the model's chat template."
    )
    functions: Annotated[None, *refused("send tools instead")] = None
    function_call: Annotated[None, *refused("send tool_choice instead")] = None
    audio: Annotated[None, *refused("the models served here make text")] = None

    def prompt(self) -> ChatPrompt:
        """The checked conversation. Raises InvalidRequest where two fields contradict."""
        return ChatPrompt(
            messages=[message.plain() for message in self.messages],
            tools=[tool.plain() for tool in self.tools or ()],
            tool_choice=self._tool_choice(),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            template_kwargs=template_kwargs(self.chat_template_kwargs),
        )

    def sampling(self) -> SamplingParams:
        wanted = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(wanted) > 1:
            raise InvalidRequest(
                f"max_tokens ({self.max_tokens}) and max_completion_tokens "
                f"({self.max_completion_tokens}) differ; send one",
                param="max_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest(
                "top_logprobs is only allowed with logprobs: true", param="top_logprobs"
            )
        return self.params(
            max_tokens=wanted.pop() if wanted else None,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def _tool_choice(self) -> str:
        names = [tool.function.name for tool in self.tools or ()]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InvalidRequest(f"two tools are called {twice.pop()!r}", param="tools")
        choice = self.tool_choice
        if choice is None:
            return "auto" if names else "none"
        if not names and choice != "none":
            raise InvalidRequest("tool_choice is only allowed with tools", param="tool_choice")
        if isinstance(choice, NamedToolChoice):
            return _named_choice(choice.function.name, names, self.constraint() is not None)
        if choice == "required" and self.constraint() is not None:
            raise InvalidRequest(
                "tool_choice and a constraint on the text (response_format, guided_regex, "
                "guided_grammar) exclude each other",
                param="tool_choice",
            )
        return choice


def _named_choice(name: str, names: list[str], constrained: bool) -> str:
    param = "tool_choice.function.name"
    if name not in names:
        raise InvalidRequest(f"no tool is called {name!r}; there are {names}", param=param)
    if name in ("auto", "none", "required"):
        raise InvalidRequest(f"a tool called {name!r} cannot be chosen by name", param=param)
    if constrained:
        raise InvalidRequest(
            "tool_choice and a constraint on the text exclude each other", param="tool_choice"
        )
    return name


def template_kwargs(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Raises InvalidRequest for a variable that the server itself sets."""
    for name in kwargs or ():
        if name in RESERVED_KWARGS:
            raise InvalidRequest(
                f"chat_template_kwargs.{name} may not be set; the server sets {name} itself",
                param=f"chat_template_kwargs.{name}",
            )
    return dict(kwargs or {})


Finish = Literal["stop", "length", "tool_calls"]


class TopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobReply(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[TokenLogprobReply] | None


class FunctionReply(Reply):
    name: str
    arguments: str


class ToolCallReply(Reply):
    id: str
    type: Literal["function"]
    function: FunctionReply


class AssistantReply(Reply):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallReply] | None = None


class ChatChoice(Reply):
    index: int
    message: AssistantReply
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    stop_reason: str | int | None = None


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply


class FunctionDelta(Reply):
    name: str | None = None
    arguments: str | None = None


class ToolCallDeltaReply(Reply):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class DeltaReply(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDeltaReply] | None = None


class ChatChunkChoice(Reply):
    index: int
    delta: DeltaReply
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatCompletionChunk(Reply):
    """One ``data:`` line of a stream. The last line is ``data: [DONE]``."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageReply | None = None
