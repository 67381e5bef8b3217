"""Whom ``tenfold chat`` talks to: a running server, or models in this process.

Both give the same events one by one, without async, so that the conversation is written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from tenfold.core.types import SamplingParams
from tenfold.fleet.types import ChatPrompt, Delta, GenerateEvent, TextPrompt


class Served(NamedTuple):
    """A model that can be asked. Without ``chats`` (no chat template) it only continues text."""

    name: str
    chats: bool


class Talker(Protocol):
    def models(self) -> list[Served]:
        """Those that generate text."""
        ...

    def stream(
        self, model: str, prompt: ChatPrompt | TextPrompt, sampling: SamplingParams
    ) -> Iterator[Delta]:
        """New text as it comes; leaving early stops the answer. Raises TenfoldError."""
        ...

    def close(self) -> None: ...


class ServerTalker:
    """A server that speaks the OpenAI protocol."""

    def __init__(self, url: str, key: str | None) -> None:
        from tenfold.client import connect

        self.url = url
        self.key = key
        self._runner = asyncio.Runner()
        self._client = connect(url, key)

    def models(self) -> list[Served]:
        from tenfold.cli.http import call

        found = call(self.url, "GET", "/v1/models", key=self.key)["data"]
        return [
            Served(model["id"], bool(model.get("has_chat_template", True)))
            for model in found
            if model.get("kind", "generate") != "embed"
        ]

    def stream(
        self, model: str, prompt: ChatPrompt | TextPrompt, sampling: SamplingParams
    ) -> Iterator[Delta]:
        from tenfold.client.base import ask

        events: Any = self._client.stream(ask(model, prompt, sampling))
        try:
            while (event := self._runner.run(_next(events))) is not None:
                if isinstance(event, Delta):
                    yield event
        finally:
            self._runner.run(events.aclose())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class LocalTalker:
    """Models loaded into this process."""

    def __init__(self, model: str) -> None:
        from tenfold.client.llm import LLM

        self._llm = LLM(model)

    def models(self) -> list[Served]:
        statuses = self._llm.client.service.models()
        return [
            Served(status.name, status.has_chat_template)
            for status in statuses
            if status.facts is None or status.facts.kind == "generate"
        ]

    def stream(
        self, model: str, prompt: ChatPrompt | TextPrompt, sampling: SamplingParams
    ) -> Iterator[Delta]:
        asked: Any = prompt.messages if isinstance(prompt, ChatPrompt) else prompt.text
        for event in self._llm.stream(asked, sampling, model=model):
            if isinstance(event, Delta):
                yield event

    def close(self) -> None:
        self._llm.close()


async def _next(events: Any) -> GenerateEvent | None:
    try:
        event: GenerateEvent = await anext(events)
        return event
    except StopAsyncIteration:
        return None
