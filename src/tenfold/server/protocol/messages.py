"""Chat messages and tools: what a conversation may hold. Text only.

Knows nothing of templates: ``ChatBody`` hands checked, OpenAI-shaped dicts down.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from tenfold.core.errors import InvalidRequest
from tenfold.server.protocol.base import Body, Identifier
from tenfold.server.strict_json import strict_json


class TextPart(Body):
    type: Literal["text"] = Field(description="Only text: the models served here see no images.")
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _check_arguments(text: str) -> str:
    """The arguments, "{}" for none. Templates parse them, so they must be sound."""
    text = text.strip() or "{}"
    try:
        value = strict_json(text.encode(), what="it")
    except InvalidRequest as exc:
        raise ValueError(f"should be a JSON object as text: {exc}") from None
    if not isinstance(value, dict):
        raise ValueError('should be a JSON object as text, such as \'{"city": "Rome"}\'')
    return text


class FunctionCall(Body):
    name: Identifier
    arguments: Annotated[str, AfterValidator(_check_arguments)] = Field(
        description="A JSON object, as text.", json_schema_extra={"example": "{}"}
    )


class ToolCall(Body):
    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None

    def plain(self) -> dict[str, Any]:
        return _plain("system", text_of(self.content), name=self.name)


class UserMessage(Body):
    role: Literal["user"]
    content: Content
    name: Name | None = None

    def plain(self) -> dict[str, Any]:
        return _plain("user", text_of(self.content), name=self.name)


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: Content | None = Field(None, description="May be null beside tool_calls.")
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: Name | None = None

    def plain(self) -> dict[str, Any]:
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in self.tool_calls or ()
        ]
        text = None if self.content is None else text_of(self.content)
        return _plain(
            "assistant",
            text if calls else text or "",
            name=self.name,
            reasoning_content=self.reasoning_content,
            tool_calls=calls or None,
        )


class ToolMessage(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: Name
    name: Name | None = None

    def plain(self) -> dict[str, Any]:
        return _plain("tool", text_of(self.content), name=self.name, tool_call_id=self.tool_call_id)


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def text_of(content: str | list[TextPart]) -> str:
    """The text of a message; parts are joined by line breaks."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _plain(role: str, content: str | None, **fields: Any) -> dict[str, Any]:
    present = {key: value for key, value in fields.items() if value is not None}
    return {"role": role, "content": content, **present}


class FunctionSpec(Body):
    name: Identifier
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema.")
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionSpec

    def plain(self) -> dict[str, Any]:
        function = self.function
        spec: dict[str, Any] = {"name": function.name}
        if function.description is not None:
            spec["description"] = function.description
        spec["parameters"] = function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": spec}


class NamedFunction(Body):
    name: Identifier


class NamedToolChoice(Body):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice
