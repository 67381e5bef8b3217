"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_MODEL = "smollm2-135m"

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Url = Annotated[
    str, typer.Option("--url", envvar="TENFOLD_URL", help="Address of the running server.")
]
Key = Annotated[
    str | None, typer.Option("--key", envvar="TENFOLD_KEY", help="API key.", show_envvar=True)
]
AdminKey = Annotated[
    str | None,
    typer.Option("--key", envvar="TENFOLD_ADMIN_KEY", help="Admin key, where one is set."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="TENFOLD_CONFIG", help="Config file (TOML)."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one setting, as server.port=9000."),
]
AcceptLicence = Annotated[
    bool, typer.Option("--accept-licence", help="Agree to the licence of the model's weights.")
]
