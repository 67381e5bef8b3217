"""A step log says what the engine computed; bad lines are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.harness import Sim
from tenfold.bench.calibrate import logged
from tenfold.core.errors import ConfigError
from tenfold.engine.steplog import StepLog, read_steps


def test_a_log_has_every_plan_and_what_it_took(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    sim = Sim()
    sim.add()
    instance = sim.engine.instances["m"]
    instance.step_log = StepLog(path)  # type: ignore[attr-defined]
    sim.ask("a", [1] * 10, 6)
    sim.ask("b", [2] * 7, 3)
    sim.run()
    instance.step_log.close()  # type: ignore[attr-defined]
    steps = list(read_steps(path))
    assert [step.slices for step in steps] == sim.recorders["m"].plans
    assert sum(step.seconds for step in steps) == pytest.approx(sim.clock.now())
    assert sum(step.shape.prefill_tokens for step in steps) == 17
    assert {step.model for step in steps} == {"m"}


def test_what_a_step_cost_is_the_time_until_the_next_one(tmp_path: Path) -> None:
    shape = '{"decode_rows": 1}'
    line = '{{"model": "m", "at": {}, "seconds": 0.1, "around": 0.02, "shape": {}, "slices": [{}]}}'
    rows = [(0.0, '["a", 0, 1]'), (0.2, '["a", 1, 1]'), (9.0, '["b", 0, 1]'), (9.5, '["b", 1, 1]')]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(line.format(at, shape, piece) + "\n" for at, piece in rows))
    # Nobody was there between 0.32 and 9: that step is what it and its bookkeeping took.
    assert [step.seconds for step in logged(path)] == pytest.approx([0.2, 0.12, 0.5])


def test_bad_logs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_steps(path))
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"steps\.jsonl:1"):
        list(read_steps(path))
    with pytest.raises(ConfigError, match="cannot be written"):
        StepLog(tmp_path / "none" / "log")
