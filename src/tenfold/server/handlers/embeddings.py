"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.core.errors import DeadlineExceeded, InvalidRequest
from tenfold.core.types import Usage
from tenfold.fleet.types import EmbedResult, ModelStatus
from tenfold.server.body import StrictRoute
from tenfold.server.errors import Json
from tenfold.server.handlers.docs import working
from tenfold.server.protocol.embeddings import EmbeddingBody, EmbeddingList
from tenfold.server.record import record_of
from tenfold.server.requests import check_ids, reply_headers, serve_model
from tenfold.server.state import ServerState, state_of
from tenfold.server.stream import while_connected

MAX_INPUTS = 2048

router = APIRouter(route_class=StrictRoute, tags=["embeddings"])


@router.post("/v1/embeddings", response_model=EmbeddingList, responses=working())
async def embeddings(body: EmbeddingBody, request: Request) -> Response:
    """One unit vector for each text, or for each list of token ids."""
    state, record = state_of(request), record_of(request.scope)
    status = serve_model(request, body.model, "embed", body.user)
    _check(body, status)
    work = _embed(state, body, record.client)
    result = await while_connected(state, request.receive, work)
    record.ran = True
    record.finishes.append("stop")
    record.usage = Usage(prompt_tokens=result.prompt_tokens)
    return Json(_reply(body, status.name, result), headers=reply_headers(body))


def _check(body: EmbeddingBody, status: ModelStatus) -> None:
    if len(body.input) > MAX_INPUTS:
        raise InvalidRequest(
            f"input: at most {MAX_INPUTS} items a request, not {len(body.input)}", param="input"
        )
    for ids in body.input:
        if not isinstance(ids, str):
            check_ids(ids, status, "input")
    size = status.facts.hidden_size if status.facts else None
    if body.dimensions is not None and body.dimensions != size:
        raise InvalidRequest(
            f"dimensions: model {status.name!r} makes vectors of {size}, and cutting them is not "
            f"supported (asked for {body.dimensions})",
            param="dimensions",
        )


async def _embed(state: ServerState, body: EmbeddingBody, client: str) -> EmbedResult:
    limit = state.settings.request_timeout
    try:
        async with asyncio.timeout(limit):
            return await state.backend.embed(body.model, body.input, client, body.keep_alive)
    except TimeoutError:
        raise DeadlineExceeded(f"no vectors within {limit:g} seconds") from None


def _reply(body: EmbeddingBody, model: str, result: EmbedResult) -> dict[str, Any]:
    encode = _base64 if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(result.vectors)
    ]
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    return {"object": "list", "model": model, "data": data, "usage": usage}


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI's clients decode it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
