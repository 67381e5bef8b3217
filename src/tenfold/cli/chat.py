"""``tenfold chat``: talk to a model, with a running server or in this process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.options import DEFAULT_MODEL, DEFAULT_URL, AcceptLicence, Key
from tenfold.cli.output import note

if TYPE_CHECKING:
    from tenfold.cli.talk import Talker


def chat(
    model: Annotated[
        str | None,
        typer.Argument(help="Model; default: the first one served.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this, print the answer and leave.")
    ] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. [the context]", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="TENFOLD_URL",
            help=f"Server to talk to. [{DEFAULT_URL}, when one answers there]",
        ),
    ] = None,
    key: Key = None,
    accept_licence: AcceptLicence = False,
) -> None:
    """Talk to a model.

    Where no server runs, the model is loaded into this process. Text from a pipe is the prompt, or
    is put after it. In a conversation: /clear, /model NAME, /system TEXT, /exit.
    """
    from tenfold.cli.conversation import Conversation
    from tenfold.cli.talk import ServerTalker
    from tenfold.core.types import SamplingParams

    asked = _with_pipe(prompt)
    talker = _talker(model, url, key, accept_licence)
    try:
        sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        name = model if isinstance(talker, ServerTalker) else None  # here there is only one
        conversation = Conversation(talker, _served_name(name), system, sampling)
        if asked is None:
            conversation.repl()
        else:
            conversation.answer(asked)
    finally:
        talker.close()


def _with_pipe(prompt: str | None) -> str | None:
    """The prompt with what came through a pipe; None where a person sits at the terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    piped = "" if prompt is not None and not _pipe_has_text() else sys.stdin.read()
    parts = [part for part in (prompt, piped.strip("\n")) if part]
    return "\n\n".join(parts)


def _pipe_has_text() -> bool:
    """Whether stdin is a pipe or a file, and not just something that is no terminal."""
    import os
    import stat

    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except OSError:
        return True  # a stand-in without a descriptor: reading it ends at once
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _talker(model: str | None, url: str | None, key: str | None, accept: bool) -> Talker:
    from tenfold.cli.http import answers
    from tenfold.cli.talk import LocalTalker, ServerTalker

    if url is not None or answers(DEFAULT_URL):
        return ServerTalker(url or DEFAULT_URL, key)
    from tenfold.cli.fetch import fetch, open_store
    from tenfold.core.names import split_model

    argument = split_model(model or DEFAULT_MODEL)
    fetch(open_store(), argument.source, accept=accept)
    note(f"No server answers at {DEFAULT_URL}; loading {argument.name} here.")
    return LocalTalker(f"{argument.name}={argument.source}")


def _served_name(model: str | None) -> str | None:
    from tenfold.core.names import split_model

    return split_model(model).name if model and "=" in model else model


def register(app: typer.Typer) -> None:
    app.command()(chat)
