"""A request that another worker began: what counts its answer goes on where that was left."""

from __future__ import annotations

import pytest

from engine.harness import Sim
from tenfold.core.messages import AskStats, DeviceStats
from tenfold.engine.sequence import Sequence

PROMPT = [3, 4, 5, 6, 7]


def tell(sim: Sim) -> DeviceStats:
    sim.engine.handle(AskStats("s"))
    found = sim.heard.events[-1]
    assert isinstance(found, DeviceStats)
    return found


@pytest.mark.parametrize("made", [1, 2, 5, 8, 11])
def test_the_rest_is_what_it_would_have_been(made: int) -> None:
    whole, rest = Sim(), Sim(max_step_tokens=4)
    whole.add()
    whole.ask("r", PROMPT, output=12)
    whole.run()
    answer = whole.heard.tokens["r"]
    assert len(answer) == 12
    rest.add()
    rest.ask("r", [*PROMPT, *answer[:made]], output=12, continued=made)
    rest.run()
    assert rest.heard.tokens["r"] == answer[made:]
    assert rest.heard.finished["r"] == "length"


def test_it_ends_at_the_context_all_the_same() -> None:
    sim = Sim()
    sim.add(context=10)
    sim.ask("r", [*PROMPT, 8, 9, 10], output=100, continued=3)
    sim.run()
    assert len(sim.heard.tokens["r"]) == 2 and sim.heard.finished["r"] == "length"


def test_its_prompt_was_paid_where_it_began() -> None:
    """Only its new tokens are service; who starts anew pays for the prompt as well."""
    sim = Sim(policy="vtc", extend_weight=1.0, output_weight=2.0)
    batcher = sim.add()
    sim.ask("r", [*PROMPT, 8, 9], output=6, continued=2, client="a")
    seq: Sequence = batcher.sequences["r"]
    assert (seq.prompt_tokens, seq.generated) == (5, 2)
    sim.run()
    sim.ask("q", [50, 51, 52, 53, 54], output=4, client="b")
    sim.run()
    service = {one.client: one.service for one in tell(sim).clients}
    assert service == {"a": 4 * 2.0, "b": 5 + 4 * 2.0}
