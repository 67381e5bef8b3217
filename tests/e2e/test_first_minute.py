"""The README's first minute with a real model: start, ask, use it as an OpenAI server, stop."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from e2e.serving import Server, serve

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(
    smollm2_path: Path, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    models = {"smollm2-135m": smollm2_path}
    with serve(tmp_path_factory.mktemp("server"), home, models, "device.memory=1GiB") as made:
        # The line is out, so a request succeeds, and has no second try.
        reply = made.http.post(
            "/v1/chat/completions",
            json={"model": "smollm2-135m", "messages": FRANCE, "max_tokens": 1},
        )
        assert reply.status_code == 200, reply.text
        yield made


def test_one_line_on_stdout(server: Server) -> None:
    line = f"Tenfold is ready at http://127.0.0.1:{server.port} (models: smollm2-135m)\n"
    assert server.out.read_text() == line


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Server) -> None:
    body = {"model": "smollm2-135m", "messages": FRANCE, "temperature": 0, "max_tokens": 32}
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--noproxy", "*"),
            f"{server.url}/v1/chat/completions",
            *("-H", "Content-Type: application/json", "-d", json.dumps(body)),
        ],
        capture_output=True,
        check=True,
    )
    assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_the_answer_streams(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as sdk:
        chunks = list(
            sdk.chat.completions.create(
                model="smollm2-135m", messages=FRANCE, temperature=0, max_tokens=24, stream=True
            )
        )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "Paris" in "".join(pieces)
    assert sum(bool(piece) for piece in pieces) > 5, "piece by piece"


def test_a_schema_holds(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "millions": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["city", "millions"],
        "additionalProperties": False,
    }
    reply = server.post(
        "/v1/chat/completions",
        model="smollm2-135m",
        messages=FRANCE,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
    )
    found = json.loads(reply["choices"][0]["message"]["content"])
    assert set(found) == {"city", "millions"} and 0 <= found["millions"] <= 99


def test_a_tool_is_called(server: Server) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}}
    parameters = {**city, "required": ["city"], "additionalProperties": False}
    reply = server.post(
        "/v1/chat/completions",
        model="smollm2-135m",
        messages=[{"role": "user", "content": "How is the weather in Rome?"}],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": parameters}}],
        tool_choice="required",
        temperature=0,
        max_tokens=100,
    )
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call, *_) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city"}


def test_a_second_turn_comes_from_the_cache(server: Server) -> None:
    long = [{"role": "user", "content": "Tell me of the sea. " * 20}]
    asked: Any = {"model": "smollm2-135m", "temperature": 0, "max_tokens": 8}
    first = server.post("/v1/chat/completions", messages=long, **asked)
    said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    more = [*long, said, {"role": "user", "content": "And of the sky?"}]
    second = server.post("/v1/chat/completions", messages=more, **asked)["usage"]
    prompt = first["usage"]["prompt_tokens"]
    assert second["prompt_tokens_details"]["cached_tokens"] >= prompt // 16 * 16 - 16


def test_eight_at_once_say_what_one_says(server: Server) -> None:
    prompts = [f"Number {n} is followed by the number" for n in range(8)]
    alone = [server.complete("smollm2-135m", prompt, 8) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(server.complete, "smollm2-135m", prompt, 8, cache_salt="again")
            for prompt in prompts
        ]
        assert [job.result() for job in asked] == alone


def test_the_page_is_there(server: Server) -> None:
    page = server.http.get("/")
    assert page.status_code == 200 and "<title>" in page.text
    assert server.get("/health") == {"status": "ok"}
    assert server.get("/ready")["models"] == ["smollm2-135m"]


def test_it_leaves_with_code_0(server: Server) -> None:
    """Last in this file."""
    server.settled()
    assert server.stop() == 0
    assert server.out.read_text().count("\n") == 1
    assert "Traceback" not in server.err.read_text()
