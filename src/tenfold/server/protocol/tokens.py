"""/tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tenfold.core.errors import InvalidRequest
from tenfold.fleet.types import ChatPrompt
from tenfold.server.protocol.base import Body, ModelName, Reply, TokenId
from tenfold.server.protocol.chat import template_kwargs
from tenfold.server.protocol.messages import Message, Tool


class TokenizeBody(Body):
    """Either a ``prompt`` or ``messages``. ``model`` may be left out when one model is served."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[Tool] | None = Field(None, max_length=128)
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = Field(
        None, description="Default true for a prompt, false for messages (the template has them)."
    )
    return_token_strs: bool | None = None

    def chat(self) -> ChatPrompt | None:
        """The conversation, or None for a plain prompt. Raises InvalidRequest unless it is one."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("send either prompt or messages", param="prompt")
        if self.messages is None:
            return None
        return ChatPrompt(
            messages=[message.plain() for message in self.messages],
            tools=[tool.plain() for tool in self.tools or ()],
            template_kwargs=template_kwargs(self.chat_template_kwargs),
        )


class TokenizeReply(Reply):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(Body):
    model: ModelName | None = None
    tokens: list[TokenId]


class DetokenizeReply(Reply):
    prompt: str
