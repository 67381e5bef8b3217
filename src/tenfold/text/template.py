"""Chat templates: a conversation as the text the model was trained on.

Renders what transformers' ``apply_chat_template`` renders, and turns a template's complaints into
InvalidRequest. Knows nothing of token ids, and asks nothing of a message but to be OpenAI's shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from tenfold.core.errors import InvalidRequest, ModelFileError
from tenfold.text.folder import read_json
from tenfold.text.gguf_metadata import Metadata
from tenfold.text.sandbox_env import TemplateRefusal, environment

Message = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]

_RESERVED = ("messages", "tools", "documents")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_PROBED_ROLES = ("system", "developer", "user", "assistant", "tool")
_NEEDLE = "needle-in-a-template"
_CONTINUE = "TENFOLD-CONTINUES-HERE "


class ChatTemplate:
    """One model's template, compiled once. Rendering may be called from any thread.

    ``source`` is the Jinja text; ``tool_source`` another one for when there are tools (some models
    have two). ``variables`` are what templates name the special tokens: "bos_token" and so on.
    Raises ModelFileError for a template that is not valid Jinja.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str] | None = None,
        *,
        tool_source: str | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self._variables = dict(variables or {})
        self._env = environment(now)
        self._template = self._compile(source)
        self._tool_template = self._compile(tool_source) if tool_source else self._template
        self.takes_tools = bool(tool_source) or "tools" in self._names(source)
        self._taken: dict[str, bool] = {}

    def render(
        self,
        messages: Messages,
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        **kwargs: Any,
    ) -> str:
        """The conversation as text, ready for ``encode(…, special=False)``.

        ``messages`` and ``tools`` are OpenAI-shaped and are not changed. Content given as text
        parts is joined by newlines, unless the template itself takes parts. Arguments of tool
        calls given as JSON text become objects, which templates expect. ``continue_final`` leaves
        the last message open, to be continued, and adds no generation prompt. Other keywords are
        the template's own (``enable_thinking`` and the like). Raises InvalidRequest.
        """
        if reserved := [name for name in _RESERVED if name in kwargs]:
            raise InvalidRequest(
                f"a template is given its {reserved[0]} by the request itself; leave it out of the "
                "template's arguments",
                param="chat_template_kwargs",
            )
        chat = [self._message(message, place) for place, message in enumerate(messages)]
        if not chat:
            raise InvalidRequest("messages is empty; send at least one", param="messages")
        values = {
            **self._variables,
            "add_generation_prompt": add_generation_prompt and not continue_final,
            **kwargs,
            "tools": list(tools) if tools else None,
            "documents": None,
        }
        if not continue_final:
            return self._render(chat, values)
        cut = _cut_at_mark(self._render(_marked(chat), values))
        if cut is None:
            raise InvalidRequest(
                "the chat template leaves out the last message, so it cannot be continued",
                param="messages",
            )
        return cut

    def _render(self, chat: list[Message], values: dict[str, Any]) -> str:
        template = self._tool_template if values["tools"] else self._template
        failure: Exception | None = None
        for attempt in _attempts(chat):
            try:
                return self._env.render(template, {**values, "messages": attempt})
            except TemplateRefusal as exc:
                raise InvalidRequest(
                    f"messages: the model's chat template refuses them: {exc}", param="messages"
                ) from exc
            except Exception as exc:  # a template's own errors are of any kind
                failure = failure or exc
        raise InvalidRequest(
            f"messages: the model's chat template cannot render them: {failure}", param="messages"
        ) from failure

    def _message(self, message: Mapping[str, Any], place: int) -> Message:
        """A copy without what is null, its parts and tool calls as the template takes them."""
        where = f"messages[{place}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f"{where} is not an object with a role", param=where)
        copy = {key: value for key, value in message.items() if value is not None}
        if "content" in copy:
            copy["content"] = self._content(copy["role"], copy["content"], f"{where}.content")
        if calls := copy.get("tool_calls"):
            copy["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls")
        reasoning = next((copy[key] for key in _REASONING if key in copy), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        return copy

    def _content(self, role: str, content: Any, where: str) -> Any:
        """Text or text parts, whichever the template takes from ``role``; parts if both."""
        if not isinstance(content, list):
            if not isinstance(content, str):
                raise InvalidRequest(f"{where} is neither text nor a list of parts", param=where)
            wanted = not self._takes(role, _NEEDLE) and self._takes(role, _parts([_NEEDLE]))
            return _parts([content]) if wanted else content
        texts = _texts(content, where)
        return _parts(texts) if self._takes(role, _parts([_NEEDLE])) else "\n".join(texts)

    def _takes(self, role: str, content: Any) -> bool:
        """Whether a message of ``role`` may have such content: found by rendering one."""
        if role not in _PROBED_ROLES:
            return isinstance(content, str)
        key = f"{role} {type(content).__name__}"
        if key not in self._taken:
            shown = self._probe(role, content)
            # Content of the wrong kind is often printed as Python or JSON would.
            printed = f"'text': '{_NEEDLE}" in shown or f'"text": "{_NEEDLE}' in shown
            self._taken[key] = _NEEDLE in shown and not printed
        return self._taken[key]

    def _probe(self, role: str, content: Any) -> str:
        probe: Message = {"role": role, "content": content}
        before: list[Message] = [] if role in ("user", "system") else [_plain("user")]
        after: list[Message] = [] if role == "user" else [_plain("user")]
        values = {**self._variables, "messages": [*before, probe, *after], "tools": None}
        try:
            return self._env.render(self._template, values)
        except Exception:
            return ""

    def _compile(self, source: str) -> jinja2.Template:
        try:
            return self._env.compile_source(source)
        except Exception as exc:  # SyntaxError and RecursionError too, for absurd nesting
            raise ModelFileError(f"the chat template is not valid Jinja: {exc}") from exc

    def _names(self, source: str) -> set[str]:
        return meta.find_undeclared_variables(self._env.parse(source))


def missing_template(model: str) -> InvalidRequest:
    """The error for a chat with a model that was never taught to chat."""
    return InvalidRequest(
        f"{model} is a base model without a chat template; use /v1/completions, or give one with a "
        "Jinja file beside the model (NAME.jinja for NAME.gguf, chat_template.jinja in a folder)",
        param="model",
    )


def folder_template(folder: Path, variables: Mapping[str, str]) -> ChatTemplate | None:
    """The template of a model folder: chat_template.jinja, or what tokenizer_config.json holds."""
    found: Any = _jinja_file(folder / "chat_template.jinja")
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = found or read_json(folder / name).get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if not isinstance(found, dict):
        found = {"default": found}
    tools = found.get("tool_use")
    default = found.get("default") or tools
    if not isinstance(default, str):
        return None
    return ChatTemplate(default, variables, tool_source=tools)


def gguf_template(
    metadata: Metadata, variables: Mapping[str, str], beside: Path | None = None
) -> ChatTemplate | None:
    """The template in a GGUF's metadata, with its variant for tools where it has one.

    ``beside``: where a person may have put another, which wins.
    """
    if beside is not None and (own := _jinja_file(beside)) is not None:
        return ChatTemplate(own, variables)
    tools = metadata.get("tokenizer.chat_template.tool_use")
    default = metadata.get("tokenizer.chat_template", tools)
    if not isinstance(default, str) or not default:
        return None
    return ChatTemplate(default, variables, tool_source=tools or None)


def _jinja_file(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError) as exc:
        raise ModelFileError(f"{file}: cannot be read: {exc}") from exc


def _plain(role: str) -> Message:
    return {"role": role, "content": "x"}


def _parts(texts: list[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _texts(parts: list[Any], where: str) -> list[str]:
    texts = []
    for place, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if kind else None
        if kind not in ("text", "refusal") or not isinstance(text, str):
            raise InvalidRequest(
                f"{where}[{place}] is of type {kind!r}; this model takes text parts only",
                param=f"{where}[{place}]",
            )
        texts.append(text)
    return texts


def _tool_calls(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} is not a list", param=where)
    return [_tool_call(call, f"{where}[{place}]") for place, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"{where} has no function", param=where)
    if not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(
            f"{where}.function.arguments is not JSON: {exc}", param=f"{where}.function.arguments"
        ) from exc
    return {**call, "function": {**function, "arguments": arguments}}


def _attempts(chat: list[Message]) -> Iterator[list[Message]]:
    """The chat, then, where it holds tool calls, in the other shapes that templates expect:
    with content in every message, and with arguments as JSON text."""
    yield chat
    if not any("tool_calls" in message for message in chat):
        return
    filled = [message if "content" in message else {**message, "content": ""} for message in chat]
    yield filled
    yield [_with_json_arguments(message) for message in filled]


def _with_json_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = json.dumps(call["function"].get("arguments", {}), ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _marked(chat: list[Message]) -> list[Message]:
    """The chat with a mark behind the last message's text."""
    last = chat[-1]
    content = last.get("content")
    if isinstance(content, str):
        return [*chat[:-1], {**last, "content": content + _CONTINUE}]
    if isinstance(content, list) and content:
        part = {**content[-1], "text": content[-1]["text"] + _CONTINUE}
        return [*chat[:-1], {**last, "content": [*content[:-1], part]}]
    raise InvalidRequest("the last message has no text to continue", param="messages")


def _cut_at_mark(text: str) -> str | None:
    place = text.rfind(_CONTINUE.rstrip())
    if place < 0:
        return None
    # The mark ends in a space: where that is gone, the template trims, and would have trimmed here.
    kept = text.startswith(_CONTINUE, place)
    return text[:place] if kept else text[:place].rstrip()
