"""``tenfold bench …``: handed on to ``tenfold.bench.cli``, which is imported only then."""

from __future__ import annotations

from typing import Any

import typer


def bench(ctx: typer.Context) -> None:
    """Measure servers and compare engines (tenfold bench --help)."""
    command: Any = typer.main.get_command(_app())
    # Not standalone: errors go up to the root, which prints them as for every verb.
    code = command.main(ctx.args, prog_name="tenfold bench", standalone_mode=False)
    if isinstance(code, int) and code:
        raise typer.Exit(code)


def _app() -> typer.Typer:
    from tenfold.bench.cli import app

    return app


def register(main: typer.Typer) -> None:
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    main.command(context_settings=settings, add_help_option=False)(bench)
