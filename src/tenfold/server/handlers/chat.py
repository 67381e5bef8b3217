"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.core.errors import InvalidRequest
from tenfold.fleet.types import ModelStatus
from tenfold.server.body import StrictRoute
from tenfold.server.handlers.answer import answer
from tenfold.server.handlers.docs import streaming, working
from tenfold.server.outputs.base import Head, new_id
from tenfold.server.outputs.chat import ChatWriter
from tenfold.server.protocol.chat import ChatBody, ChatCompletion, ChatCompletionChunk
from tenfold.server.record import record_of
from tenfold.server.requests import check_sampling, generate_request, serve_model
from tenfold.server.state import state_of

router = APIRouter(route_class=StrictRoute, tags=["generation"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={**streaming(ChatCompletionChunk), **working()},
)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a conversation. OpenAI's protocol, with vLLM's names for what OpenAI lacks."""
    state, record = state_of(request), record_of(request.scope)
    status = serve_model(request, body.model, "generate", body.user)
    check_has_template(status)
    prompt, sampling = body.prompt(), body.sampling()
    await check_sampling(state, sampling, status)
    head = Head(new_id("chatcmpl"), status.name)
    writer = ChatWriter(
        head,
        sampling.n,
        include_usage=body.include_usage,
        logprobs=sampling.logprobs is not None,
    )
    requests = [generate_request(state, record, body, prompt, sampling, head.id)]
    return await answer(request, body, writer, requests)


def check_has_template(status: ModelStatus) -> None:
    """Raises InvalidRequest for a base model: a guessed template would answer nonsense."""
    if status.state == "ready" and not status.has_chat_template:
        raise InvalidRequest(
            f"model {status.name!r} is a base model without a chat template; it continues text: "
            "use /v1/completions",
            param="model",
        )
