"""The loop inside a peer: every kind of engine sees the same tokens in the same order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tenfold.bench.peers.runner import handle

PROMPTS = [[1, 2, 3], [4, 5, 6]]
TURNS = [[[10, 11], [20, 21]], [[12, 13], [22, 23]], [[14, 15], [24, 25]]]


def following(row: list[int]) -> int:
    return (7 * sum(row) + len(row)) % 1000


class Batch:
    """A lockstep engine that remembers what every stream was fed."""

    def prepare(self, streams: int, length: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(streams)]

    def reset(self) -> None:
        self.rows = [[] for _ in self.rows]

    def share(self, prefix: list[int], streams: int) -> None:
        self.rows = [list(prefix) for _ in range(streams)]

    def extend(self, rows: list[list[int]]) -> Iterator[tuple[int, int]]:
        for stream, row in enumerate(rows):
            self.rows[stream] += row
            yield stream, following(self.rows[stream])


class Server:
    """A streaming engine that remembers its prompts."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    async def stream(self, prompt: list[int], output: int) -> AsyncIterator[list[int]]:
        self.prompts.append(list(prompt))
        row = list(prompt)
        for _ in range(output):
            await asyncio.sleep(0)
            row.append(following(row))
            yield row[-1:]


def do(engine: Any, **job: Any) -> dict[str, Any]:
    return asyncio.run(handle(engine, job))


def prepared() -> Batch:
    engine = Batch()
    do(engine, do="prepare", streams=2, length=100)
    return engine


@pytest.mark.parametrize("make", [prepared, Server])
def test_a_run_gives_every_stream_its_tokens_and_their_times(make: Any) -> None:
    answer = do(make(), do="run", prompts=PROMPTS, output=5)
    for prompt, times, tokens in zip(PROMPTS, answer["times"], answer["tokens"], strict=True):
        row = list(prompt)
        for token in tokens:
            assert token == following(row)
            row.append(token)
        assert len(times) == len(tokens) == 5
        assert all(a <= b for a, b in itertools.pairwise([0.0, *times]))


def test_a_second_run_starts_from_nothing() -> None:
    engine = prepared()
    once = do(engine, do="run", prompts=PROMPTS, output=4)["tokens"]
    assert do(engine, do="run", prompts=PROMPTS, output=4)["tokens"] == once


def test_a_chat_is_the_same_for_both_kinds() -> None:
    system = [91, 92, 93]
    batch, server = prepared(), Server()
    for engine in (batch, server):
        answer = do(engine, do="chat", system=system, turns=TURNS, output=4)
        assert len(answer["first"]) == 6
        assert 0 < max(answer["first"]) <= answer["seconds"]
    # A server's last prompts, with all but the last of the tokens that came, are what the streams
    # of the other kind hold.
    for stream, prompt in enumerate(server.prompts[-2:]):
        held = batch.rows[stream]
        assert held[: len(prompt)] == prompt
        row = list(prompt)
        for _ in range(3):
            row.append(following(row))
        assert held == row
    assert server.prompts[0] == system + TURNS[0][0]


def test_an_answer_cut_short_fails_the_chat() -> None:
    class Short(Server):
        async def stream(self, prompt: list[int], output: int) -> AsyncIterator[list[int]]:
            yield [1]

    with pytest.raises(RuntimeError, match="1 tokens came instead of 4"):
        do(Short(), do="chat", system=[1], turns=TURNS, output=4)


def test_an_unknown_job_is_refused() -> None:
    with pytest.raises(ValueError, match="no job is called 'dance'"):
        do(prepared(), do="dance")
