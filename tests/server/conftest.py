"""Apps over the fake backend: in memory, and over a real loopback socket in the test's own loop."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fake_backend import FakeBackend
from fastapi import FastAPI
from loopback import client_of, serving

from tenfold.server.app import create_app
from tenfold.server.settings import ServerSettings


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def settings() -> ServerSettings:
    return ServerSettings(log_format="json")


@pytest.fixture
def app(backend: FakeBackend, settings: ServerSettings) -> FastAPI:
    return create_app(backend, settings)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as made:
        yield made


@pytest.fixture
async def address(app: FastAPI) -> AsyncIterator[str]:
    async with serving(app) as made:
        yield made


@pytest.fixture
def request_lines() -> Iterator[list[str]]:
    """What is logged of finished requests while the test runs."""
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("tenfold.requests")
    keeper, level = Keeper(), logger.level
    logger.addHandler(keeper)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(keeper)
    logger.setLevel(level)
