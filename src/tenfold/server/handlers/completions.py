"""POST /v1/completions."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.core.errors import InvalidRequest
from tenfold.fleet.types import TextPrompt
from tenfold.server.body import StrictRoute
from tenfold.server.handlers.answer import answer
from tenfold.server.handlers.docs import streaming, working
from tenfold.server.outputs.base import Head, new_id
from tenfold.server.outputs.completions import CompletionWriter
from tenfold.server.protocol.completions import Completion, CompletionBody
from tenfold.server.record import record_of
from tenfold.server.requests import check_ids, check_sampling, generate_request, serve_model
from tenfold.server.state import ServerState, state_of

router = APIRouter(route_class=StrictRoute, tags=["generation"])


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses={**streaming(Completion), **working()},
)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue one or several prompts, given as text or as token ids."""
    state, record = state_of(request), record_of(request.scope)
    status = serve_model(request, body.model, "generate", body.user)
    sampling = body.sampling()
    check_choices(len(body.prompt), sampling.n, state.settings.max_choices)
    prompts: list[str | list[int]] = [*body.prompt]
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_ids(prompt, status, "prompt")
    await check_sampling(state, sampling, status)
    head = Head(new_id("cmpl"), status.name)
    writer = CompletionWriter(
        head,
        await _echoes(state, body, status.name, sampling.n),
        include_usage=body.include_usage,
        top_logprobs=bool(body.logprobs),
    )
    requests = [
        generate_request(state, record, body, TextPrompt(prompt), sampling, f"{head.id}-{number}")
        for number, prompt in enumerate(prompts)
    ]
    return await answer(request, body, writer, requests)


def check_choices(prompts: int, n: int, limit: int) -> None:
    """Raises InvalidRequest for more answers than one request may ask for."""
    if prompts * n > limit:
        raise InvalidRequest(
            f"{prompts} prompts with n = {n} make {prompts * n} choices; "
            f"one request may ask for {limit}",
            param="n" if n > 1 else "prompt",
        )


async def _echoes(state: ServerState, body: CompletionBody, model: str, n: int) -> list[str]:
    """The text to put before each choice: the prompts, if they are to be echoed."""
    if not body.echo:
        return [""] * (len(body.prompt) * n)
    texts = [
        prompt
        if isinstance(prompt, str)
        else await asyncio.to_thread(state.backend.detokenize, model, prompt)
        for prompt in body.prompt
    ]
    return [text for text in texts for _ in range(n)]
