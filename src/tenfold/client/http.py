"""A client over the OpenAI protocol: any server that speaks it will do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tenfold.client.base import Client
from tenfold.core.errors import TenfoldError, Unavailable, from_code
from tenfold.core.types import Constraint, SamplingParams, Usage
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    Finished,
    GenerateEvent,
    GenerateRequest,
    LogprobEntry,
    ToolCallDelta,
)


class HttpClient(Client):
    """Speaks to ``base_url`` (with or without a trailing /v1). ``key``: the API key, if any."""

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        root = base_url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(None, connect=10.0)
        self._http = httpx.AsyncClient(
            base_url=root, headers=headers, timeout=timeout, transport=transport
        )

    async def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        chat = isinstance(request.prompt, ChatPrompt)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        reader = _ChunkReader()
        try:
            async with self._http.stream(
                "POST", path, json=_body(request), headers={"X-Request-Id": request.id}
            ) as response:
                if response.status_code != 200:
                    raise _error(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        for event in reader.read(json.loads(line[6:])):
                            yield event
        except httpx.TransportError as error:
            raise Unavailable(f"no answer from {self._http.base_url}: {error}") from error
        yield Finished(reader.usage)

    async def embed(self, model: str, texts: list[str]) -> list[list[float]]:
        body = {"model": model, "input": texts, "encoding_format": "float"}
        data = await self._call("POST", "/v1/embeddings", body)
        return [row["embedding"] for row in sorted(data["data"], key=lambda row: row["index"])]

    async def models(self) -> list[str]:
        return [row["id"] for row in (await self._call("GET", "/v1/models"))["data"]]

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise Unavailable(f"no answer from {self._http.base_url}: {error}") from error
        if response.status_code != 200:
            raise _error(response.status_code, response.content)
        return response.json()

    async def close(self) -> None:
        await self._http.aclose()


def _error(status: int, body: bytes) -> TenfoldError:
    try:
        error = json.loads(body)["error"]
        return from_code(error.get("code") or "", error["message"], param=error.get("param"))
    except (ValueError, KeyError, TypeError):
        return TenfoldError(f"the server answered {status}: {body[:200].decode(errors='replace')}")


def _body(request: GenerateRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "priority": request.priority,
    }
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        body["messages"] = prompt.messages
        if prompt.tools:
            body["tools"] = prompt.tools
            body["tool_choice"] = _tool_choice(prompt.tool_choice)
            body["parallel_tool_calls"] = prompt.parallel_tool_calls
        if prompt.template_kwargs:
            body["chat_template_kwargs"] = prompt.template_kwargs
    else:
        body["prompt"] = prompt.text
    if request.timeout is not None:
        body["timeout"] = request.timeout
    if request.ttft_target is not None:
        body["ttft_target"] = request.ttft_target
    if request.itl_target is not None:
        body["tpot_target"] = request.itl_target
    if request.keep_alive is not None:
        body["keep_alive"] = request.keep_alive
    if request.cache_salt:
        body["cache_salt"] = request.cache_salt
    return body | _sampling(request.sampling, chat=isinstance(prompt, ChatPrompt))


def _tool_choice(choice: str) -> Any:
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


_PLAIN = (
    "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos",
)  # fmt: skip


def _sampling(params: SamplingParams, *, chat: bool) -> dict[str, Any]:
    """Only what differs from the default travels, so servers with fewer knobs still serve us."""
    default = SamplingParams()
    body: dict[str, Any] = {
        name: getattr(params, name)
        for name in _PLAIN
        if getattr(params, name) != getattr(default, name)
    }
    if params.stop:
        body["stop"] = list(params.stop)
    if params.stop_token_ids:
        body["stop_token_ids"] = list(params.stop_token_ids)
    if params.logit_bias:
        body["logit_bias"] = {str(k): v for k, v in params.logit_bias.items()}
    if params.logprobs is not None:
        body |= (
            {"logprobs": True, "top_logprobs": params.logprobs}
            if chat
            else {"logprobs": params.logprobs}
        )
    return body | _constraint(params.constraint)


def _constraint(constraint: Constraint | None) -> dict[str, Any]:
    match constraint:
        case None:
            return {}
        case Constraint(kind="json_object"):
            return {"response_format": {"type": "json_object"}}
        case Constraint(kind="json_schema", text=text):
            schema = {"name": "answer", "schema": json.loads(text)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case Constraint(kind="regex", text=text):
            return {"guided_regex": text}
        case Constraint(text=text):
            return {"guided_grammar": text}


class _ChunkReader:
    """Server-sent chunks, back into events."""

    def __init__(self) -> None:
        self.usage = Usage()

    def read(self, chunk: dict[str, Any]) -> list[GenerateEvent]:
        if error := chunk.get("error"):
            raise from_code(error.get("code") or "", error["message"], param=error.get("param"))
        if usage := chunk.get("usage"):
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self.usage = Usage(usage["prompt_tokens"], usage.get("completion_tokens", 0), cached)
        events: list[GenerateEvent] = []
        for choice in chunk.get("choices", []):
            events.append(_delta(choice))
            if finish := choice.get("finish_reason"):
                events.append(ChoiceEnd(choice["index"], finish, choice.get("stop_reason")))
        return events


def _delta(choice: dict[str, Any]) -> Delta:
    new = choice.get("delta") or {}
    calls = [
        ToolCallDelta(
            call["index"],
            call.get("id"),
            (call.get("function") or {}).get("name"),
            (call.get("function") or {}).get("arguments") or "",
        )
        for call in new.get("tool_calls") or []
    ]
    return Delta(
        choice["index"],
        new.get("content") or choice.get("text") or "",
        new.get("reasoning_content") or "",
        calls,
        list(choice.get("token_ids") or []),
        _logprobs(choice.get("logprobs")),
    )


def _logprobs(found: dict[str, Any] | None) -> list[LogprobEntry] | None:
    """Chat-shaped log-probabilities; token ids are not part of that shape and read -1."""
    if not found or "content" not in found or found["content"] is None:
        return None

    def entry(row: dict[str, Any]) -> LogprobEntry:
        top = [entry(rival) for rival in row.get("top_logprobs") or []]
        return LogprobEntry(row["token"], -1, row.get("bytes") or [], row["logprob"], top)

    return [entry(row) for row in found["content"]]
