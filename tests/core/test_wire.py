"""Messages come out of a stream as they went in, however it was cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.core.messages import (
    Abort,
    Command,
    DeviceStats,
    Event,
    Generate,
    ModelStats,
    RequestStarted,
    StepDone,
    TokenOutput,
)
from tenfold.core.types import EngineRequest, SamplingParams, TokenLogprob
from tenfold.core.wire import Inbox, encode

MESSAGES: list[Command | Event] = [
    Abort("r1"),
    Generate(EngineRequest("r2", "m", "c", list(range(3000)), SamplingParams(stop=("é",)), 0.5)),
    StepDone(
        "m",
        1.5,
        [RequestStarted("r1", 1.0, 16)],
        [TokenOutput("r1", [7, 8], "stop", [TokenLogprob(7, -0.5, [(7, -0.5)])], 3)],
    ),
    DeviceStats("s", "cpu:0", 4096, 9, 8, 7, 6, [ModelStats("m", "ready", steps=5)], ["odd"], 0.25),
    StepDone("m", 2.5),
]


@given(st.lists(st.integers(0, 20_000), max_size=12))
def test_any_cut_gives_the_same_messages(cuts: list[int]) -> None:
    stream = b"".join(map(encode, MESSAGES))
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    inbox = Inbox()
    found = [message for low, high in pairwise(places) for message in inbox.take(stream[low:high])]
    assert found == MESSAGES


def test_byte_by_byte() -> None:
    stream = b"".join(map(encode, [MESSAGES[0], MESSAGES[2], MESSAGES[4]]))
    inbox = Inbox()
    found = [m for i in range(len(stream)) for m in inbox.take(stream[i : i + 1])]
    assert found == [MESSAGES[0], MESSAGES[2], MESSAGES[4]]


def test_who_stops_half_way_loses_nothing() -> None:
    inbox = Inbox()
    taking = inbox.take(b"".join(map(encode, MESSAGES)))
    assert next(taking) == MESSAGES[0]
    taking.close()
    assert list(inbox.take(b"")) == MESSAGES[1:]


def test_only_messages_travel() -> None:
    with pytest.raises(KeyError):
        encode("hello")  # type: ignore[arg-type]
