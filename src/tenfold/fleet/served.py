"""One served model as the control plane holds it: where it is, its words, and what it is asked.

Everything that needs the model's tokeniser, template or limits is here; what needs a worker's
attention is ``service``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tenfold.core.errors import ContextTooLong, InvalidRequest, TenfoldError, Unavailable
from tenfold.core.messages import LoadModel, ModelOptions
from tenfold.core.types import Constraint, ModelFacts
from tenfold.fleet.generation import ChoiceStream, Parsers, wants_tools
from tenfold.fleet.supervisor import Supervisor
from tenfold.fleet.types import ChatPrompt, GenerateRequest, ModelState, ModelStatus
from tenfold.text.model_text import ModelText, load_model_text

log = logging.getLogger("tenfold.fleet")

LONG_TEXT = 20_000
"""Characters from which tokenising leaves the event loop."""


@dataclass(slots=True)
class ModelSource:
    """A model to serve: where its files are and how to load it. ``device``: None is every one."""

    name: str
    path: str
    options: ModelOptions = field(default_factory=ModelOptions)
    device: str | None = None
    pinned: bool = False
    licence: str = ""


@dataclass(slots=True, eq=False)
class ServedModel:
    """A model and the workers it belongs on. ``text`` and ``facts`` are there once it was loaded
    by one of them. ``moving``: from the first of its places to the last; ``leaving``: the first,
    although it is drained, takes requests until the last is ready."""

    source: ModelSource
    places: list[Supervisor]
    state: ModelState
    created: int
    text: ModelText | None = None
    facts: ModelFacts | None = None
    error: str = ""
    migrations: int = 0
    moving: bool = False
    leaving: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def up(self) -> bool:
        """Whether a worker holds it now."""
        return any(self.name in place.loaded for place in self.places)

    def holders(self) -> list[Supervisor]:
        """The workers that hold it and take requests."""
        loaded = [place for place in self.places if self.name in place.loaded]
        return [p for p in loaded if not p.draining] or (loaded if self.leaving else [])

    @property
    def held(self) -> bool:
        """Whether no request wakes it."""
        return any(self.name in place.moves.held for place in self.places)

    @property
    def ready(self) -> bool:
        """Whether a request would succeed now."""
        return self.state == "ready" and bool(self.holders())

    async def wait_up(self, seconds: float) -> None:
        """Until a worker that takes requests holds it. Raises Unavailable after ``seconds``, or at
        once where it is known that none will soon."""
        places = [place for place in self.places if not place.draining]
        if not places:
            raise Unavailable(f"every worker of {self.name} is being drained; resume one")
        waiting = [asyncio.ensure_future(place.wait_for(self.name, seconds)) for place in places]
        try:
            for one in asyncio.as_completed(waiting):
                with contextlib.suppress(TenfoldError):
                    return await one
            await waiting[0]
        finally:
            for other in waiting:
                other.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def load(self) -> None:
        """Have the workers load it, and read its words meanwhile; it is ready when the first has.
        Where none can, what went wrong first is raised and kept in ``error``, and all let go."""
        command = LoadModel(self.name, self.source.path, self.source.options)
        loading = [asyncio.ensure_future(place.load(command)) for place in self.places]
        try:
            self.text = await asyncio.to_thread(load_model_text, self.source.path)
            await self._loaded(loading)
        except BaseException as error:
            for one in loading:
                one.cancel()
            await asyncio.gather(*loading, return_exceptions=True)
            for place in self.places:
                place.unload(self.name)
            self.state = "failed"
            self.error = f"{type(error).__name__}: {error}"
            if isinstance(error, TenfoldError):
                self.error = error.message
            raise

    async def _loaded(self, loading: Sequence[asyncio.Future[ModelFacts]]) -> None:
        errors: list[TenfoldError] = []
        for one in asyncio.as_completed(loading):
            try:
                self.facts = await one
                self.state = "ready"
            except TenfoldError as error:
                errors.append(error)
        if not any(self.name in place.wanted for place in self.places):
            raise errors[0]
        for failure in errors:
            log.error("a worker could not load %s: %s", self.name, failure.message)

    def status(self) -> ModelStatus:
        away = self.state == "ready" and not self.up
        failures = [p.failed[self.name] for p in self.places if self.name in p.failed]
        broken = failures[0] if away and failures else ""
        holding = [place for place in self.places if self.name in place.loaded]
        options = self.source.options
        return ModelStatus(
            name=self.name,
            state="failed" if broken else "loading" if away else self.state,
            device=self.places[0].name,
            devices=[place.name for place in holding],
            pinned=self.source.pinned,
            facts=self.facts,
            has_chat_template=self.text is not None and self.text.template is not None,
            licence=self.source.licence,
            created=self.created,
            error=broken or self.error,
            residency={place.name: place.moves.states[self.name] for place in holding},
            held=self.held,
            ttl=options.ttl,
            floor_bytes=options.floor_bytes,
            limit_bytes=options.kv_limit_bytes,
            evict_cost=options.evict_cost,
            migrations=self.migrations,
        )

    @property
    def words(self) -> ModelText:
        """Tokeniser and template. Raises Unavailable while they are being read."""
        if self.text is None:
            raise Unavailable(f"{self.name} is still loading; try again soon", retry_after=1)
        return self.text

    # --- from words to tokens ---------------------------------------------------------------
    def render(self, prompt: ChatPrompt) -> str:
        return self.words.render(
            self.name, prompt.messages, tools=_tools(prompt), **prompt.template_kwargs
        )

    async def prompt_ids(self, request: GenerateRequest) -> list[int]:
        """The prompt's tokens. Raises InvalidRequest or ContextTooLong, naming the field."""
        prompt = request.prompt
        if isinstance(prompt, ChatPrompt):
            ids, param = await self._encode_chat(prompt), "messages"
        elif isinstance(prompt.text, str):
            ids, param = await self.encode(prompt.text, "prompt"), "prompt"
        else:
            ids, param = prompt.text, "prompt"
            self.check_ids(ids, "prompt")
        if not ids:
            raise InvalidRequest("the prompt is empty; give at least one token", param=param)
        if self.facts is not None and len(ids) >= self.facts.context_length:
            raise ContextTooLong(
                f"the prompt has {len(ids)} tokens and {self.name}'s context holds "
                f"{self.facts.context_length}, one of them for the answer; shorten it",
                param=param,
            )
        return ids

    def room_after(self, prompt: int) -> int:
        """Tokens an answer can have behind a prompt of so many."""
        return self.facts.context_length - prompt if self.facts is not None else 1 << 31

    async def encode(self, what: str, param: str) -> list[int]:
        """Tokenise; a long text on a thread, so that others' tokens keep flowing, and one that
        cannot fit not at all."""
        tokenizer = self.words.tokenizer
        if len(what) < LONG_TEXT:
            return tokenizer.encode(what, param=param)
        self._refuse_hopeless(what, param)
        return await asyncio.to_thread(tokenizer.encode, what, param=param)

    async def _encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """The conversation's tokens; what looks like a control token in it is plain text."""

        def encode() -> list[int]:
            return self.words.encode_chat(
                self.name, prompt.messages, tools=_tools(prompt), **prompt.template_kwargs
            )

        if sum(len(str(message)) for message in prompt.messages) < LONG_TEXT:
            return encode()
        rendered = await asyncio.to_thread(self.render, prompt)
        self._refuse_hopeless(rendered, "messages")
        return await asyncio.to_thread(encode)

    def _refuse_hopeless(self, what: str, param: str) -> None:
        least = self.words.tokenizer.least_tokens(what)
        if self.facts is not None and least > self.facts.context_length:
            raise ContextTooLong(
                f"the text has at least {least} tokens and {self.name}'s context holds "
                f"{self.facts.context_length}; shorten it",
                param=param,
            )

    def check_ids(self, ids: list[int], param: str) -> None:
        """Raises InvalidRequest for an id that is no token of the model."""
        size = self.words.tokenizer.vocab_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"token id {wrong} is outside {self.name}'s vocabulary of {size}", param=param
            )

    async def embed_ids(self, inputs: list[str] | list[list[int]]) -> list[list[int]]:
        """Tokens of each text to embed. Raises InvalidRequest or ContextTooLong."""
        rows = []
        for one in inputs:
            ids = await self.encode(one, "input") if isinstance(one, str) else one
            self.check_ids(ids, "input")
            if not ids:
                raise InvalidRequest("an input is empty; give at least one token", param="input")
            if self.facts is not None and len(ids) > self.facts.context_length:
                raise ContextTooLong(
                    f"an input has {len(ids)} tokens and {self.name} takes "
                    f"{self.facts.context_length}; shorten it",
                    param="input",
                )
            rows.append(ids)
        return rows

    # --- from tokens to words ---------------------------------------------------------------
    def choice(self, index: int, request: GenerateRequest, prompt: list[int]) -> ChoiceStream:
        """The text side of one choice, with the parsers that the request and the model call for."""
        tokenizer = self.words.tokenizer
        parsers = Parsers()
        if isinstance(request.prompt, ChatPrompt) and wants_tools(request.prompt):
            from tenfold.text.parsers.tools import tool_parser

            parsers.tools = tool_parser(self._tool_style(), request.prompt.tools)
        if isinstance(request.prompt, ChatPrompt) and request.split_reasoning:
            from tenfold.text.parsers.reasoning import reasoning_parser

            tail = tokenizer.decode(prompt[-16:], skip_special=False)
            parsers.reasoning = reasoning_parser(self._template(), tail)
        return ChoiceStream(index, request, prompt, tokenizer, parsers)

    def forced_call(self, prompt: ChatPrompt) -> Constraint | None:
        """What the output must match where tool_choice asks for a call. Not yet tried out."""
        if prompt.tool_choice in ("auto", "none"):
            return None
        from tenfold.text.parsers.tools import tool_constraint

        return tool_constraint(
            prompt.tools,
            prompt.tool_choice,
            self._tool_style(),
            parallel=prompt.parallel_tool_calls,
        )

    def _tool_style(self) -> str:
        from tenfold.text.parsers.tools import pick_tool_style

        return pick_tool_style(self._template(), self.facts.family if self.facts else "")

    def _template(self) -> str:
        template = self.text.template if self.text else None
        return template.source if template else ""


def _tools(prompt: ChatPrompt) -> list[dict[str, Any]] | None:
    return prompt.tools if prompt.tools and prompt.tool_choice != "none" else None
