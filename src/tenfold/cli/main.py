"""``tenfold``: the verbs, and what becomes of errors and of Ctrl-C.

Nothing heavy is imported here or by a verb's module: help must answer at once. A verb imports what
it needs when it runs.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tenfold.cli import (
    bench,
    chat,
    clients,
    doctor,
    keep,
    limit,
    load,
    models,
    pin,
    plan,
    ps,
    pull,
    schedule,
    serve,
    simulate,
    sleep,
    top,
    trace,
    unload,
    wake,
    why,
)
from tenfold.core.errors import TenfoldError
from tenfold.core.machine import refusal

_INTERRUPTED = 130


class _Verbs(TyperGroup):
    """Runs a verb. A TenfoldError becomes one red line and its exit code, Ctrl-C becomes 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TenfoldError as exc:
            if ctx.params.get("debug"):
                raise
            complain(exc.message)
            raise typer.Exit(exc.exit_code) from None
        except KeyboardInterrupt:
            if ctx.params.get("debug"):
                raise
            raise typer.Exit(_INTERRUPTED) from None


app = typer.Typer(
    cls=_Verbs,
    help="Serve many language models to many clients from few devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: rich would have to be imported before the first line.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from tenfold import __version__

        typer.echo(f"tenfold {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Options of every verb; they stand before it."""


for verb in (
    *(serve, chat, pull, models, ps, top, schedule, load, unload),
    *(sleep, wake, pin, limit, keep, why, clients),
    *(plan, bench, simulate, trace, doctor),
):
    verb.register(app)


def complain(message: str) -> None:
    """One red line on stderr (more only where the message itself has more)."""
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)


def run() -> None:
    """The ``tenfold`` program."""
    if why := refusal():
        complain(why)
        sys.exit(2)
    try:
        app(prog_name="tenfold")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as exc:
        if "--debug" in sys.argv:
            raise
        said = " ".join(str(exc).split()) or "no message"
        complain(f"a bug in Tenfold: {type(exc).__name__}: {said} (--debug shows where)")
        sys.exit(1)


if __name__ == "__main__":
    run()
