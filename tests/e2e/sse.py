"""Reading a stream of server-sent events as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

from e2e.serving import Server


class Event(NamedTuple):
    """``kind`` is "error" where the server said so; ``data`` is "[DONE]" or the parsed JSON."""

    kind: str
    data: Any

    @property
    def text(self) -> str:
        """What a chunk of a chat or a completion adds."""
        if self.data == "[DONE]" or not self.data.get("choices"):
            return ""
        choice = self.data["choices"][0]
        return str(choice["text"] if "text" in choice else choice["delta"].get("content") or "")


def events(reply: httpx.Response) -> Iterator[Event]:
    """The events of a running response. Comments are left out."""
    kind = ""
    for line in reply.iter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield Event(kind, data if data == "[DONE]" else json.loads(data))
            kind = ""


@contextmanager
def stream(
    server: Server, model: str, prompt: str | list[int], tokens: int, **body: Any
) -> Iterator[Iterator[Event]]:
    """A running completion of exactly ``tokens`` tokens; leaving the block hangs up."""
    fields = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True, **body}
    asked = {"model": model, "prompt": prompt, **fields}
    with server.http.stream("POST", "/v1/completions", json=asked) as reply:
        assert reply.status_code == 200, reply.read()
        yield events(reply)
