"""``tenfold serve``: fetch what is missing, start the workers, answer over HTTP."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.options import DEFAULT_MODEL, AcceptLicence, ConfigFile, Sets

if TYPE_CHECKING:
    from tenfold.core.config import LoadedConfig
    from tenfold.server.settings import ServerSettings


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL…]",
            help="Catalogue names, paths, hf:org/repo; name=source renames one. "
            f"Default: those of the config file, else {DEFAULT_MODEL}.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [8000]")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Output that does not depend on batching.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes that share the machine. [1, or one a Ray node]"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run the workers on this Ray cluster, or auto."),
    ] = None,
    accept_licence: AcceptLicence = False,
) -> None:
    """Serve models over the OpenAI protocol.

    Prints one line on stdout when a request would succeed. Everything else goes to stderr.
    """
    from tenfold.core.config import load_config

    flags = {
        "server.host": host,
        "server.port": port,
        "device.workers": workers,
        "device.ray": ray,
        "kernels.mode": "exact" if exact else None,
    }
    loaded = load_config(config, sets or (), models=models or (), flags=flags)
    if not loaded.config.models:
        loaded = load_config(config, sets or (), models=[DEFAULT_MODEL], flags=flags)
    fetch_all(loaded, accept=accept_licence)
    _run(loaded)


def fetch_all(loaded: LoadedConfig, *, accept: bool) -> None:
    """Every configured model, in the store."""
    from tenfold.cli.fetch import fetch, open_store

    store = open_store(loaded)
    for setup in loaded.to_models():
        fetch(store, setup.source, accept=accept)


def server_settings(loaded: LoadedConfig) -> ServerSettings:
    """The HTTP face's settings, out of the config's ``[server]`` and ``[metrics]``."""
    from tenfold.server.settings import ServerSettings

    server, metrics = loaded.config.server, loaded.config.metrics
    return ServerSettings(
        admin_key_sha256=loaded.admin_key_sha256() or None,
        cors_origins=list(server.cors),
        body_limit=server.max_body,
        body_seconds=server.body_seconds,
        ping_seconds=server.ping_seconds,
        request_timeout=server.request_timeout,
        max_client_labels=metrics.max_clients,
        max_choices=server.max_choices,
        metrics_compat=metrics.compat,
        metrics_public=metrics.public,
        log_format=server.log_format,
        drain_grace=server.drain_grace,
    )


def _run(loaded: LoadedConfig) -> None:
    import asyncio

    from tenfold.fleet.assemble import build_service, build_tenants
    from tenfold.server.app import create_app
    from tenfold.server.logs import to_stderr
    from tenfold.server.run import bind
    from tenfold.server.run import serve as serve_app

    to_stderr()
    server = loaded.config.server
    settings = server_settings(loaded)
    tenants = build_tenants(loaded)
    listener = bind(server.host, server.port)  # a port that is taken should not cost a load

    async def main() -> None:
        service = build_service(loaded, tenants)
        names = ", ".join(setup.name for setup in loaded.to_models())

        def ready(port: int) -> None:
            print(ready_line(server.host, port, names), flush=True)

        try:
            await service.start()
            app = create_app(service, settings, tenants)
            await serve_app(
                app,
                service,
                server.host,
                server.port,
                server.drain_seconds,
                ready,
                listener=listener,
            )
        finally:
            await service.close()

    asyncio.run(main())
    sys.stderr.flush()


def ready_line(host: str, port: int, names: str) -> str:
    """The one line on stdout. A server on all addresses is named by one that can be opened."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    if ":" in shown and not shown.startswith("["):
        shown = f"[{shown}]"
    return f"Tenfold is ready at http://{shown}:{port} (models: {names})"


def register(app: typer.Typer) -> None:
    app.command()(serve)
