"""The Python API and the command line, as programs of their own, beside a running server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from e2e.serving import PATIENCE, Server, environment, tenfold_run

PYTHON_API = """
import json, sys
from tenfold import LLM, SamplingParams
from tenfold import ConfigError, ContextTooLong, InvalidRequest, ModelNotFound, Unavailable
from tenfold.fleet.types import Delta, Finished

greedy = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
with LLM(sys.argv[1:], memory_bytes=32 << 20, page_bytes=64 << 10, threads=1) as llm:
    texts = [output.text for output in llm.generate(["the cat", "on the mat"], greedy)]
    by_ids = llm.generate([80, 90, 100], greedy)[0].text
    chat = llm.chat([{"role": "user", "content": "hi"}], greedy)[0]
    two = llm.generate("the", SamplingParams(n=2, seed=1, max_tokens=8))[0].outputs
    pieces = "".join(e.text for e in llm.stream("the cat", greedy) if isinstance(e, Delta))
    for event in llm.stream("the cat", SamplingParams(max_tokens=4000, ignore_eos=True)):
        break
    errors = []
    try:
        LLM([])
    except ConfigError:
        errors.append("ConfigError")
    for prompt, model in (([1] * 9000, None), ([], None), ([304], None), ("x", "nope")):
        try:
            llm.generate([prompt], greedy, model=model)
        except (ContextTooLong, InvalidRequest, ModelNotFound) as error:
            errors.append(type(error).__name__)
    nothing = [llm.generate([]), llm.chat([]), llm.embed([], model="embedder")]
    said = {
        "nothing": nothing, "texts": texts, "by_ids": by_ids, "chat": chat.text, "stream": pieces,
        "usage": [chat.reply.usage.prompt_tokens, chat.reply.usage.completion_tokens],
        "two": [choice.text for choice in two], "errors": errors,
        "vectors": llm.embed(["the cat", "on"], model="embedder"),
    }
llm.close()
try:
    llm.generate("x")
except Unavailable as error:
    print(json.dumps(said | {"closed": error.message}))
"""


@pytest.fixture(scope="module")
def api(home: Path, tiny: Mapping[str, Path]) -> dict[str, Any]:
    """What a small program that uses the Python API prints."""
    models = [f"{name}={path}" for name, path in tiny.items() if name != "other"]
    done = subprocess.run(
        [sys.executable, "-c", PYTHON_API, *models],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_python_api_answers_as_the_server_does(api: dict[str, Any], server: Server) -> None:
    assert api["texts"] == [server.complete("tiny", text, 12) for text in ("the cat", "on the mat")]
    assert api["by_ids"] == server.complete("tiny", [80, 90, 100], 12)
    assert api["stream"] == api["texts"][0]
    chat = server.post(
        "/v1/chat/completions",
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=12,
        temperature=0,
        ignore_eos=True,
    )
    assert api["chat"] == chat["choices"][0]["message"]["content"]
    assert api["usage"] == [chat["usage"]["prompt_tokens"], 12]
    vectors = server.post("/v1/embeddings", model="embedder", input=["the cat", "on"])["data"]
    for ours, theirs in zip(api["vectors"], vectors, strict=True):
        assert ours == pytest.approx(theirs["embedding"], abs=1e-6)


def test_the_python_api_draws_and_refuses(api: dict[str, Any]) -> None:
    assert api["nothing"] == [[], [], []]
    assert len(set(api["two"])) == 2
    refusals = ["ContextTooLong", "InvalidRequest", "InvalidRequest", "ModelNotFound"]
    assert api["errors"] == ["ConfigError", *refusals]
    assert api["closed"] == "this LLM is closed; make a new one"


def test_a_program_with_a_wrong_model_ends_with_a_named_error(home: Path, tmp_path: Path) -> None:
    code = (
        "from tenfold import LLM, TenfoldError\n"
        "try: LLM('/no/such')\n"
        "except TenfoldError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "/no/such" in done.stdout and done.stdout.count("\n") == 1


def test_chat(home: Path, server: Server) -> None:
    asked = ("chat", "tiny", "hi", "--url", server.url, "--temperature", "0", "--max-tokens", "12")
    done = tenfold_run(home, *asked)
    assert done.returncode == 0, done.stderr
    reply = server.post(
        "/v1/chat/completions",
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=12,
        temperature=0,
    )
    assert done.stdout.strip() == reply["choices"][0]["message"]["content"].strip()
    wrong = tenfold_run(home, "chat", "nope", "hi", "--url", server.url)
    assert wrong.returncode == 1 and "nope" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_chat_without_a_server(home: Path, tiny: Mapping[str, Path], server: Server) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("something answers on the default port")
    done = tenfold_run(
        home, "chat", str(tiny["tiny"]), "hi", "--temperature", "0", "--max-tokens", "12"
    )
    assert done.returncode == 0, done.stderr
    served = tenfold_run(
        home, "chat", "tiny", "hi", "--temperature", "0", "--max-tokens", "12", "--url", server.url
    )
    assert done.stdout == served.stdout != ""


def test_ps(home: Path, server: Server) -> None:
    done = tenfold_run(home, "ps", "--json", "--url", server.url)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert [model["name"] for model in status["models"]] == ["tiny", "other", "embedder"]
    assert status["ready"] and status["queue"] == []
    shown = tenfold_run(home, "ps", env={"TENFOLD_URL": server.url})
    assert "embedder" in shown.stdout and "ready" in shown.stdout


def test_load_and_unload(home: Path, server: Server, tiny: Mapping[str, Path]) -> None:
    pages = server.settled()["mapped_pages"]
    link = ("--url", server.url)
    done = tenfold_run(home, "load", f"extra={tiny['tiny']}", "--pin", *link)
    assert done.returncode == 0, done.stderr
    assert server.complete("extra", "the", 8) == server.complete("tiny", "the", 8)
    again = tenfold_run(home, "load", f"extra={tiny['tiny']}", *link)
    assert again.returncode == 1 and "served already" in again.stderr
    pinned = tenfold_run(home, "unload", "extra", *link)
    assert pinned.returncode == 1 and "pinned" in pinned.stderr
    gone = tenfold_run(home, "unload", "extra", "--force", "--json", *link)
    assert json.loads(gone.stdout) == {"id": "extra", "unloaded": True}
    assert server.http.get("/v1/models/extra").status_code == 404
    assert server.settled()["mapped_pages"] <= pages + 1
    missing = tenfold_run(home, "unload", "extra", *link)
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1


def test_bench_serve(home: Path, server: Server, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = tenfold_run(
        home,
        *("bench", "serve", "tiny", "--url", server.url, "--requests", "8", "--rate", "50"),
        *("--prompt", "16", "--output", "8", "--shared", "40", "--out", str(tmp_path), "--json"),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["requests"], summary["failed"], summary["output_tokens"]) == (8, 0, 64)
    assert summary["ttft"]["p99"] >= summary["ttft"]["p50"] > 0
    written = json.loads((tmp_path / "serve.json").read_text())
    assert written["summary"] == summary and written["machine"]["cores"] >= 1
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")
    closed = tenfold_run(
        home,
        *("bench", "serve", "nope", "--url", server.url, "--requests", "2", "--arrivals", "closed"),
        *("--out", str(tmp_path)),
    )
    assert closed.returncode == 1 and "model_not_found" in closed.stdout
