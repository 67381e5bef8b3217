"""Runs one engine as a peer: jobs come in as JSON lines, one JSON line answers each.

usage: python runner.py ENGINE_FILE.py

An engine file has a class ``Engine`` of one of two kinds. A *streaming* engine serves requests by
itself and is given all of them at once; a *lockstep* engine is a plain model with a cache, and the
loop over its streams is here. Times are seconds since the job began. Standard library only: this
file runs in the peer's environment. Knows nothing of what is measured or why.

    {"do": "start", …}                         -> {"version", "settings", "weights"}
    {"do": "prepare", "streams", "length"}     -> {}
    {"do": "run", "prompts", "output"}         -> {"times": [[s]], "tokens": [[id]]}
    {"do": "chat", "system", "turns", "output"} -> {"seconds", "first": [s]}
    {"do": "quit"}                             -> {}, and the process ends

Every answer has "ok"; a failure is {"ok": false, "error"}. Memory is read from outside.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

Rows = list[list[int]]


class Streaming(Protocol):
    """An engine that schedules its requests itself."""

    async def start(self, job: dict[str, Any]) -> dict[str, Any]:
        """Load ``job["model"]``. Answers version, settings (a dict to print) and weights (path)."""
        ...

    def stream(self, prompt: list[int], output: int) -> AsyncIterator[list[int]]:
        """Greedy tokens of one request as they come; the end-of-text token does not end it."""
        ...

    async def stop(self) -> None: ...


class Lockstep(Protocol):
    """A model with a cache, whose streams take steps together."""

    def start(self, job: dict[str, Any]) -> dict[str, Any]:
        """As of a streaming engine, with room for ``streams`` of ``length`` tokens."""
        ...

    def prepare(self, streams: int, length: int) -> None:
        """Make room for that many streams of that many tokens; outside of what is timed."""
        ...

    def reset(self) -> None:
        """Forget every stream."""
        ...

    def share(self, prefix: list[int], streams: int) -> None:
        """Compute a prefix once and open that many streams with it."""
        ...

    def extend(self, rows: Rows) -> Iterator[tuple[int, int]]:
        """Append row i to stream i; give (stream, its next token) as soon as it is known."""
        ...

    def stop(self) -> None: ...


# --- streaming engines --------------------------------------------------------------------------
async def run_streams(engine: Streaming, prompts: Rows, output: int) -> dict[str, Any]:
    began = time.perf_counter()

    async def one(prompt: list[int]) -> tuple[list[float], list[int]]:
        times: list[float] = []
        tokens: list[int] = []
        async for fresh in engine.stream(prompt, output):
            times += [time.perf_counter() - began] * len(fresh)
            tokens += fresh
        return times, tokens

    done = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return {"times": [times for times, _ in done], "tokens": [tokens for _, tokens in done]}


async def chat_streams(
    engine: Streaming, system: list[int], turns: list[Rows], output: int
) -> dict[str, Any]:
    """Every client goes through its turns by itself, waiting only for its own answers."""
    began = time.perf_counter()
    first: list[float] = []

    async def client(number: int) -> None:
        history = list(system)
        for turn in turns:
            history += turn[number]
            asked = time.perf_counter()
            fresh: list[int] = []
            async for tokens in engine.stream(history, output):
                if not fresh:
                    first.append(time.perf_counter() - asked)
                fresh += tokens
            if len(fresh) != output:
                raise RuntimeError(f"{len(fresh)} tokens came instead of {output}")
            history += fresh

    await asyncio.gather(*(client(number) for number in range(len(turns[0]))))
    return {"seconds": time.perf_counter() - began, "first": first}


# --- lockstep engines ---------------------------------------------------------------------------
def _generate(engine: Lockstep, rows: Rows, output: int) -> tuple[list[list[float]], Rows]:
    times: list[list[float]] = [[] for _ in rows]
    tokens: Rows = [[] for _ in rows]
    for _ in range(output):
        for stream, token in engine.extend(rows):
            times[stream].append(time.perf_counter())
            tokens[stream].append(token)
        rows = [row[-1:] for row in tokens]
    return times, tokens


def run_lockstep(engine: Lockstep, prompts: Rows, output: int) -> dict[str, Any]:
    began = time.perf_counter()
    engine.reset()
    times, tokens = _generate(engine, prompts, output)
    return {"times": [[t - began for t in row] for row in times], "tokens": tokens}


def chat_lockstep(
    engine: Lockstep, system: list[int], turns: list[Rows], output: int
) -> dict[str, Any]:
    """All clients take each turn together. A turn's last token has not been computed yet when the
    next begins, so it goes in front of the new words."""
    began = time.perf_counter()
    engine.reset()
    engine.share(system, len(turns[0]))
    pending: Rows = [[] for _ in turns[0]]
    first: list[float] = []
    for turn in turns:
        asked = time.perf_counter()
        rows = [last + words for last, words in zip(pending, turn, strict=True)]
        times, tokens = _generate(engine, rows, output)
        first += [row[0] - asked for row in times]
        pending = [row[-1:] for row in tokens]
    return {"seconds": time.perf_counter() - began, "first": first}


# --- the protocol -------------------------------------------------------------------------------
async def handle(engine: Any, job: dict[str, Any]) -> dict[str, Any]:
    """One job's answer. Anything the engine raises goes through."""
    streaming = hasattr(engine, "stream")
    match job["do"]:
        case "start":
            answer = engine.start(job)
            return dict(await answer if streaming else answer)
        case "prepare":
            if not streaming:
                engine.prepare(job["streams"], job["length"])
            return {}
        case "run" if streaming:
            return await run_streams(engine, job["prompts"], job["output"])
        case "run":
            return run_lockstep(engine, job["prompts"], job["output"])
        case "chat" if streaming:
            return await chat_streams(engine, job["system"], job["turns"], job["output"])
        case "chat":
            return chat_lockstep(engine, job["system"], job["turns"], job["output"])
        case "quit":
            if streaming:
                await engine.stop()
            else:
                engine.stop()
            return {}
        case other:
            raise ValueError(f"no job is called {other!r}")


async def serve(engine: Any, write: Any) -> None:
    """Until "quit" or the end of the input. Reading waits in a thread, so an engine's own tasks
    go on between jobs."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = json.loads(line)
        try:
            answer = {"ok": True, **await handle(engine, job)}
        except Exception as error:
            traceback.print_exc()
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        write(json.dumps(answer) + "\n")
        if job["do"] == "quit":
            return


def load(path: Path) -> Any:
    """The ``Engine`` of a file. By location, so that this folder is not on the import path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.Engine()


def main() -> None:
    # Whatever an engine prints must not be taken for an answer: standard output becomes stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path.pop(0)
    asyncio.run(serve(load(Path(sys.argv[1])), answers.write))


if __name__ == "__main__":
    main()
