"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.core.errors import InvalidRequest
from tenfold.fleet.types import ChatPrompt, ModelStatus
from tenfold.server.backend import Backend
from tenfold.server.body import StrictRoute
from tenfold.server.errors import Json
from tenfold.server.handlers.chat import check_has_template
from tenfold.server.handlers.docs import working
from tenfold.server.protocol.tokens import (
    DetokenizeBody,
    DetokenizeReply,
    TokenizeBody,
    TokenizeReply,
)
from tenfold.server.requests import check_ids, reply_headers
from tenfold.server.state import state_of

router = APIRouter(route_class=StrictRoute, tags=["tokens"])


@router.post("/tokenize", response_model=TokenizeReply, responses=working())
async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """The token ids of a text, or of a conversation rendered by the model's template."""
    backend = state_of(request).backend
    chat = body.chat()
    status = _model(backend, body.model)
    if chat is not None:
        check_has_template(status)
    # A long text takes long: other requests must not wait for it.
    ids = await asyncio.to_thread(_ids, backend, status.name, body, chat)
    texts = None
    if body.return_token_strs:
        texts = [backend.token_text(status.name, id) for id in ids]
    return Json(
        {
            "count": len(ids),
            "max_model_len": status.facts.context_length if status.facts else 0,
            "tokens": ids,
            "token_strs": texts,
        },
        headers=reply_headers(body),
    )


@router.post("/detokenize", response_model=DetokenizeReply, responses=working())
async def detokenize(body: DetokenizeBody, request: Request) -> Response:
    """The text of token ids."""
    backend = state_of(request).backend
    status = _model(backend, body.model)
    check_ids(body.tokens, status, "tokens")
    text = await asyncio.to_thread(backend.detokenize, status.name, body.tokens)
    return Json({"prompt": text}, headers=reply_headers(body))


def _ids(backend: Backend, model: str, body: TokenizeBody, chat: ChatPrompt | None) -> list[int]:
    special = chat is None if body.add_special_tokens is None else body.add_special_tokens
    text = body.prompt or "" if chat is None else backend.render(model, chat)
    return backend.tokenize(model, text, special=special)


def _model(backend: Backend, name: str | None) -> ModelStatus:
    """The named model, or the only one. Raises InvalidRequest where there is a choice."""
    if name is not None:
        return backend.status(name)
    served = backend.models()
    if len(served) != 1:
        names = ", ".join(status.name for status in served)
        raise InvalidRequest(f"model: say which one; served here: {names}", param="model")
    return served[0]
