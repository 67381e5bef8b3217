"""Writes docs/cli.md and docs/config.md out of the program itself: ``python -m tenfold.cli.docs``.

A test compares the pages with what this prints, so that they cannot fall behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

_MARK = "<!-- Written by `make docs`. Change the program, not this page. -->"


def cli_page() -> str:
    """docs/cli.md: every verb with its arguments and options."""
    from tenfold.bench.cli import app as bench_app
    from tenfold.cli.main import app

    root: Any = typer.main.get_command(app)
    lines = ["# Command line", "", _MARK, "", root.help, "", "## Everywhere", ""]
    lines += _options(root)
    for name, command in root.commands.items():
        if name == "bench":
            command = typer.main.get_command(bench_app)
        lines += _command(f"tenfold {name}", command, 2)
    lines += [
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | failed, or `doctor` found something essential missing |",
        "| 2 | wrong usage, setting, model file or source |",
        "| 130 | stopped by Ctrl-C |",
    ]
    return "\n".join(lines) + "\n"


def _command(path: str, command: Any, level: int) -> Iterator[str]:
    yield ""
    yield f"{'#' * level} {path}"
    yield ""
    yield _paragraphs(command.help or "")
    if children := getattr(command, "commands", None):
        for name, child in children.items():
            yield from _command(f"{path} {name}", child, level + 1)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [path, *(_metavar(argument) for argument in arguments), "[OPTIONS]"]
    yield ""
    yield f"    {' '.join(words)}"
    if arguments:
        yield ""
        for argument in arguments:
            yield f"- `{_metavar(argument)}`: {argument.help or ''}"
    yield ""
    yield from _options(command)


def _options(command: Any) -> Iterator[str]:
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    if not options:
        return
    yield "| option | meaning | default |"
    yield "|---|---|---|"
    for option in options:
        names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
        meaning = (option.help or "").replace("|", "\\|")
        if option.envvar:
            meaning += f" (`{option.envvar}`)"
        default = option.default
        plain = isinstance(default, str | int | float) and not isinstance(default, bool)
        shown = f"`{default}`" if plain and default != "" else ""
        yield f"| {names} | {meaning} | {shown} |"


def _metavar(argument: Any) -> str:
    shown = str(argument.metavar or argument.name.upper())
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _paragraphs(text: str) -> str:
    parts = text.replace("\f", "").strip().split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)


def config_page() -> str:
    """docs/config.md: every setting, its default and its meaning."""
    from tenfold.core.layers import NAMED
    from tenfold.core.sections import Config, section_of

    lines = ["# Settings", "", _MARK, "", _CONFIG_INTRODUCTION.strip()]
    for name in Config.model_fields:
        table = section_of(name)
        title = "[[models]]" if name == "models" else f"[{name}{'.NAME' if name in NAMED else ''}]"
        lines += ["", f"## `{title}`", "", _paragraphs(table.__doc__ or ""), ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        if name == "models":
            lines.append("| `name` | from the source | the name clients ask for |")
        for key, field in table.model_fields.items():
            default = "required" if field.is_required() else f"`{_shown(field)}`"
            meaning = (field.description or "").replace("|", "\\|")
            lines.append(f"| `{key}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


_CONFIG_INTRODUCTION = """
One TOML file, given with `-c FILE` or named by `TENFOLD_CONFIG`. A setting is taken from the first
of these that gives it:

1. a flag: `--port 9000`, or `--set server.port=9000` for any setting;
2. a variable: `TENFOLD_SERVER__PORT=9000` (two underscores stand for the dot);
3. the file;
4. the default below.

Unknown settings are refused, with the nearest known one. `tenfold doctor -c FILE` shows where each
value came from. Sizes are written `4GiB`, `512MiB` or in bytes; `device.memory` also takes a share,
`60%`. Secrets may stay out of the file: `key_env` and `admin_key_env` name a variable that holds
the key, `key_sha256` is its hash.

```toml
[server]
port = 9000
admin_key_env = "ADMIN_KEY"

[device]
memory = "60%"
threads = 8

[schedule]
policy = "lpm"

[[models]]
source = "smollm2-135m"
pin = true

[[models]]
name = "notes"
source = "/models/notes.gguf"
context_length = 4096

[groups.research]
tokens_per_minute = 20000

[clients.alice]
key_env = "ALICE_KEY"
group = "research"
weight = 2

[catalogue.house-model]
licence = "Apache-2.0"
sources = ["hf:org/repo/model.gguf", "path:/models/model.gguf"]
files = { "model.gguf" = "<sha256>" }
```

The variables `TENFOLD_HOME` (where models are kept), `TENFOLD_CONFIG`, `TENFOLD_URL`, `TENFOLD_KEY`
and `TENFOLD_ADMIN_KEY` are not settings of the file.
"""


def _shown(field: Any) -> str:
    """A default as one would write it: sizes with their unit."""
    from tenfold.core.sections import is_size
    from tenfold.core.sizes import format_bytes

    if is_size(field) and field.default:
        return f'"{format_bytes(field.default).replace(" ", "").replace(".0", "")}"'
    return _toml(field.default)


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return str(value)


def pages() -> dict[str, str]:
    """Every generated page by its file name under docs/."""
    return {"cli.md": cli_page(), "config.md": config_page()}


def main(folder: Path) -> None:
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
