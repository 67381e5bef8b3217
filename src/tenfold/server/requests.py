"""From a checked body to requests of the backend: the model, the client, the limits, the events.

Knows nothing of the shape of answers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256

from fastapi import Request

from tenfold.core.errors import InvalidRequest
from tenfold.core.types import ModelKind, SamplingParams, Usage
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ModelStatus,
    TextPrompt,
)
from tenfold.server.protocol.base import Body, ignored_fields
from tenfold.server.protocol.sampling import SamplingBody
from tenfold.server.record import RequestRecord, record_of
from tenfold.server.state import ServerState, state_of
from tenfold.server.stream import closing

_MAX_IGNORED = 20
_ENDPOINTS = {"generate": "/v1/chat/completions and /v1/completions", "embed": "/v1/embeddings"}


def serve_model(request: Request, model: str, kind: ModelKind, user: str | None) -> ModelStatus:
    """The model a request is for, noted in its record together with the client.

    Raises Unavailable while draining, ModelNotFound, and InvalidRequest for the wrong kind.
    """
    state, record = state_of(request), record_of(request.scope)
    state.check_accepting()
    status = state.backend.status(model)
    record.model = status.name
    if user and not record.client_fixed:
        record.client = client_name(user)
    if status.facts is not None and status.facts.kind != kind:
        raise InvalidRequest(
            f"model {model!r} serves {_ENDPOINTS[status.facts.kind]}, not this endpoint",
            param="model",
        )
    return status


def client_name(user: str) -> str:
    """``user`` as a client's name; what is no short printable name goes by its hash."""
    if re.fullmatch(r"[\x21-\x7e]{1,64}", user):
        return user
    return "user-" + sha256(user.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def reply_headers(body: Body) -> dict[str, str]:
    """``X-Tenfold-Ignored``: the fields nobody read, so that a typing error does not go unseen."""
    found = list(ignored_fields(body))
    if not found:
        return {}
    names = [re.sub(r"[^A-Za-z0-9_.\[\]-]", "_", name)[:64] for name in found[:_MAX_IGNORED]]
    more = [f"...{len(found) - _MAX_IGNORED} more"] if len(found) > _MAX_IGNORED else []
    return {"X-Tenfold-Ignored": ",".join(names + more)}


def check_ids(ids: Sequence[int], status: ModelStatus, param: str) -> None:
    """Raises InvalidRequest for a token id outside the model's vocabulary."""
    size = status.facts.vocab_size if status.facts else None
    if size is not None and ids and max(ids) >= size:
        raise InvalidRequest(
            f"{param}: token id {max(ids)} is outside the vocabulary of {status.name!r} "
            f"(0 to {size - 1})",
            param=param,
        )


async def check_sampling(state: ServerState, sampling: SamplingParams, status: ModelStatus) -> None:
    """What needs the model or the grammar compiler. Raises InvalidRequest."""
    check_ids(sampling.stop_token_ids, status, "stop_token_ids")
    check_ids(list(sampling.logit_bias), status, "logit_bias")
    if sampling.constraint is not None:
        await state.grammars.check(sampling.constraint)


def generate_request(
    state: ServerState,
    record: RequestRecord,
    body: SamplingBody,
    prompt: ChatPrompt | TextPrompt,
    sampling: SamplingParams,
    request_id: str,
) -> GenerateRequest:
    """Raises InvalidRequest for a ``timeout`` past the server's own limit."""
    limit = state.settings.request_timeout
    if body.timeout is not None and body.timeout > limit:
        raise InvalidRequest(
            f"timeout: this server allows at most {limit:g} seconds, not {body.timeout:g}",
            param="timeout",
        )
    return GenerateRequest(
        id=request_id,
        model=record.model,
        client=record.client,
        prompt=prompt,
        sampling=sampling,
        priority=body.priority or 0,
        timeout=limit if body.timeout is None else body.timeout,
        cache_salt=state.tenants.namespace(record.client, body.cache_salt or ""),
        itl_target=body.tpot_target,
        ttft_target=body.ttft_target,
        split_reasoning=isinstance(prompt, ChatPrompt),
        whole=not body.stream,
        keep_alive=body.keep_alive,
    )


async def run(
    state: ServerState, record: RequestRecord, requests: list[GenerateRequest]
) -> AsyncIterator[GenerateEvent]:
    """The events of one or several requests as one stream, measured on the way.

    Choices of the i-th request are numbered from i * n. Closing it closes the backend's generators.
    """
    events = state.backend.generate(requests[0]) if len(requests) == 1 else _merge(state, requests)
    async with closing(events):
        async for event in events:
            record.ran = True
            gap = record.saw(event, state.clock.now())
            if isinstance(event, Delta) and event.token_ids:
                state.metrics.tokens(record, len(event.token_ids), gap)
            yield event


async def _merge(
    state: ServerState, requests: list[GenerateRequest]
) -> AsyncIterator[GenerateEvent]:
    """Several requests at once. The first error ends all of them."""
    queue: asyncio.Queue[GenerateEvent | Exception] = asyncio.Queue(maxsize=len(requests))

    async def pump(request: GenerateRequest, base: int) -> None:
        try:
            async with closing(state.backend.generate(request)) as events:
                async for event in events:
                    await queue.put(event if isinstance(event, Finished) else _shift(event, base))
        except Exception as exc:
            await queue.put(exc)

    tasks = [
        asyncio.create_task(pump(request, position * request.sampling.n))
        for position, request in enumerate(requests)
    ]
    try:
        usage, queued, running = Usage(), 0.0, len(tasks)
        while running:
            event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Finished):
                running -= 1
                _add(usage, event.usage)
                queued = max(queued, event.queue_seconds or 0.0)
            else:
                yield event
        yield Finished(usage, queued)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _shift(event: Delta | ChoiceEnd, base: int) -> Delta | ChoiceEnd:
    event.index += base
    return event


def _add(total: Usage, part: Usage) -> None:
    total.prompt_tokens += part.prompt_tokens
    total.completion_tokens += part.completion_tokens
    total.cached_tokens += part.cached_tokens
