"""Writes ``tests/data/engine_log.jsonl``: what a real engine decided, on a real clock.

    PYTHONPATH=src:tests python -m engine.record_log

Requests of three clients come to a tiny model on a small device while it works; memory is short, so
cached prefixes go and sequences give way. The log has the set-up, each request with the number of
steps made before it came, every step as ``device.step_log`` writes it, and the tokens chosen.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from models.tiny import make_tiny
from tenfold.core.clock import SystemClock
from tenfold.core.messages import Event, Generate, LoadModel, StepDone
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import EngineRequest, SamplingParams
from tenfold.engine.device import Device
from tenfold.engine.engine import Engine
from tenfold.engine.instance import GenerateInstance

LOG = Path(__file__).parents[1] / "data" / "engine_log.jsonl"
PAGE = 4096


SETTINGS: dict[str, Any] = {
    "memory_bytes": 500_000,
    "page_bytes": PAGE,
    "threads": 1,
    "kernels_mode": "exact",
    "native": False,  # then steps need no scratch of the pool
    "block_tokens": 4,
    "max_running": 5,
    "max_step_tokens": 48,
    "itl_target": 0.004,
    "policy": "dlpm",
    "quantum": 40.0,
}


def requests(random: Random) -> list[tuple[int, str, str, list[int], int]]:
    """Steps before it comes, id, client, prompt, tokens to generate."""
    shared = {c: [random.randrange(3, 300) for _ in range(28)] for c in "abc"}
    found = []
    at = 0
    for number in range(26):
        client = random.choice("aaabc")
        own = [random.randrange(3, 300) for _ in range(random.randrange(2, 30))]
        found.append((at, f"r{number}", client, shared[client] + own, random.randrange(3, 44)))
        at += random.choice((0, 0, 0, 1, 2, 9))
    return found


def record(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log."""
    log = folder / "steps.jsonl"
    said = DeviceSettings.of(**SETTINGS, step_log=str(log))
    tokens: dict[str, list[int]] = {}

    def hear(event: Event) -> None:
        for output in event.outputs if isinstance(event, StepDone) else ():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)

    engine = Engine(Device(said), SystemClock(), hear)
    engine.handle(LoadModel("m", str(make_tiny("llama", folder / "tiny"))))
    while engine.loading:
        engine.step()
    instance = engine.instances["m"]
    assert isinstance(instance, GenerateInstance)
    batcher = instance.batcher
    asked = requests(Random(7))
    lines: list[dict[str, Any]] = [
        {
            "settings": SETTINGS,
            "facts": asdict(instance.facts),
            "groups": [asdict(group) for group in batcher.cache.groups],
            "weight_pages": instance.stats().weight_pages,
        }
    ]
    steps = 0
    while asked or engine.has_work:
        while asked and (asked[0][0] <= steps or not engine.has_work):
            _, id, client, prompt, output = asked.pop(0)
            sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
            engine.handle(Generate(EngineRequest(id, "m", client, prompt, sampling, 0.0)))
            lines.append({"id": id, "client": client, "prompt": prompt, "output": output,
                          "steps": steps})  # fmt: skip
        engine.step()
        steps = instance.totals.steps
    lines[0]["preemptions"] = batcher.preemptions
    engine.close()
    lines += [json.loads(line) for line in log.read_text().splitlines()]
    return [*lines, {"tokens": tokens}]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = record(Path(folder))
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("".join(json.dumps(line) + "\n" for line in made))
    print(f"{len(made)} lines, {made[0]['preemptions']} preemptions, {LOG.stat().st_size} bytes")
