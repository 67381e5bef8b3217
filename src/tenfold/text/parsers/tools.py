"""Tool calls: which style a model writes, and the parser of each style, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tenfold.core.registry import Registry
from tenfold.text.parsers.base import NewId, Tool, ToolParser, random_call_id
from tenfold.text.parsers.constraints import tool_constraint

__all__ = ["pick_tool_style", "tool_constraint", "tool_parser", "tool_parsers"]


def tool_parsers() -> Registry[Callable[..., ToolParser]]:
    """The styles. Each entry makes a parser from ``(tools, new_id)``."""
    return Registry(
        "tool call style",
        {
            "hermes": "tenfold.text.parsers.hermes:hermes",
            "json": "tenfold.text.parsers.json_object:json_object",
            "llama": "tenfold.text.parsers.llama:llama",
            "qwen": "tenfold.text.parsers.qwen:qwen",
        },
    )


def tool_parser(
    style: str, tools: Iterable[Tool] = (), *, new_id: NewId = random_call_id
) -> ToolParser:
    """A fresh parser for one answer. Raises ConfigError for an unknown style.

    ``tools``, those of the request: their names tell a bare JSON call from an answer in JSON, and
    their schemas say what the values of an XML call are.
    """
    return tool_parsers().get(style)(tools, new_id)


def pick_tool_style(template_text: str, family: str) -> str:
    """The style that a model was taught, as its chat template shows it, else by its family.

    ``template_text`` is the Jinja source, "" if there is none. A template that says nothing of
    tools gives "json": what a model without training for tools is most likely to manage.
    """
    if "<function=" in template_text:
        return "qwen"
    if "<tool_call>" in template_text:
        return "qwen" if family.startswith("qwen") else "hermes"
    if "<|python_tag|>" in template_text or "<|start_header_id|>ipython" in template_text:
        return "llama"
    if family.startswith("qwen"):
        return "qwen"
    if family == "llama" and "<|start_header_id|>" in template_text:
        return "llama"
    return "json"
