"""The Jinja environment chat templates run in: Hugging Face's dialect, fenced in.

A template comes with a model file, so it is not the server's code: it runs in Jinja's immutable
sandbox, and what it makes is capped. The cap stops doubling and repeating, not every slow loop; a
template is trusted as far as the weights it came with. Knows nothing of messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sized
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARS = 64 << 20
"""The most a template may make, in characters: far above any context a model has."""


class TemplateRefusal(jinja2.TemplateError):
    """A template called ``raise_exception``: it is the conversation that is wrong."""


class TemplateTooLarge(jinja2.TemplateError):
    """A template made more than the cap."""


def environment(now: Callable[[], datetime], max_chars: int = MAX_CHARS) -> TemplateEnvironment:
    """A fresh environment. ``now`` answers the templates' ``strftime_now``."""
    env = TemplateEnvironment(max_chars)
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda form: now().strftime(form)
    return env


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Whitespace rules, filters and tags that templates on the hub rely on."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, max_chars: int) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self.max_chars = max_chars
        self.globals["_concat"] = self.concatenated

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse a product, power or sum too large before it is made."""
        if operator == "**" and not (abs(left) <= 1 << 16 and abs(right) <= 64):
            raise TemplateTooLarge(f"{left} ** {right} is too large")
        if operator == "*":
            self._check(_size(left) * (right if isinstance(right, int) else 1))
            self._check(_size(right) * (left if isinstance(left, int) else 1))
        if operator == "+":
            self._check(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def concatenated(self, *parts: Any) -> str:
        """The ``~`` operator, which Jinja does not let a sandbox intercept."""
        text = "".join(map(str, parts))
        self._check(len(text))
        return text

    def compile_source(self, source: str) -> jinja2.Template:
        """Raises jinja2.TemplateSyntaxError."""
        tree = _Concat().visit(self.parse(source))
        return self.from_string(tree)

    def render(self, template: jinja2.Template, values: dict[str, Any]) -> str:
        """Raises jinja2.TemplateError, and whatever Python errors a template runs into."""
        parts: list[str] = []
        size = 0
        for part in template.generate(values):
            size += len(part)
            self._check(size)
            parts.append(part)
        return "".join(parts)

    def _check(self, size: int) -> None:
        if size > self.max_chars:
            raise TemplateTooLarge(f"the template makes more than {self.max_chars} characters")


class _Concat(NodeTransformer):
    """Turns ``a ~ b`` into a call of ``_concat``."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        parts = [self.visit(part) for part in node.nodes]
        name = nodes.Name("_concat", "load", lineno=node.lineno)
        return nodes.Call(name, parts, [], None, None, lineno=node.lineno)


class _GenerationTag(Extension):
    """``{% generation %}`` marks what training learns from; here what it holds is plain text."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 0


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, without Jinja's HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateRefusal(message)
