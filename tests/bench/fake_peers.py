"""Peers without a model, as the files that ``runner.py`` drives, and a plan that compares them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import gguf
import numpy as np

from tenfold.bench.sidebyside.cases import Sizes, build_cases
from tenfold.bench.sidebyside.run import Plan
from tenfold.bench.sidebyside.specs import SCRIPTS, PeerSpec

LOCKSTEP = """
print("an engine that talks while it is imported")

class Engine:
    def start(self, job):
        if job["options"].get("fail") == "start":
            raise RuntimeError("no start today")
        self.fail = job["options"].get("fail")
        print("talk on standard output")
        self.prepare(job["streams"], job["length"])
        return {"version": "1", "settings": {"threads": job["threads"]}, "weights": job["model"]}

    def prepare(self, streams, length):
        self.room = (streams, length)

    def reset(self):
        self.rows = [[] for _ in range(self.room[0])]

    def share(self, prefix, streams):
        for row in self.rows[:streams]:
            row += prefix

    def extend(self, rows):
        if self.fail == "die" and len(rows) > 1:
            raise SystemExit("fell over")
        if self.fail == "short" and len(rows) > 1:
            return
        for stream, row in enumerate(rows):
            self.rows[stream] += row
            assert len(self.rows[stream]) <= self.room[1], "more tokens than room was made for"
            yield stream, sum(self.rows[stream]) % 1000

    def stop(self):
        pass
"""

STREAMING = """
class Engine:
    async def start(self, job):
        return {"version": "2", "settings": {"batch": 7}, "weights": job["model"]}

    async def stream(self, prompt, output):
        row = list(prompt)
        for _ in range(output):
            row.append(sum(row) % 1000)
            yield row[-1:]

    async def stop(self):
        pass
"""

LIMITS = 'print(\'{"read_gb_s": 30.0, "f32_gflop_s": 150.0, "int8_gop_s": 300.0}\')'

SIZES = Sizes(4, 3, 6, (2,), 5, 2, 2, 3, 2, 256)


def tiny_file(path: Path) -> Path:
    """A GGUF of two matrices, a vector and an embedding that is the head too."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, shape in (
        ("token_embd.weight", (10, 4)),
        ("blk.0.attn_q.weight", (4, 4)),
        ("blk.0.ffn_up.weight", (8, 4)),
        ("blk.0.attn_norm.weight", (4,)),
    ):
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def spec(name: str, script: Path, **options: str) -> PeerSpec:
    return PeerSpec(name, "llama", "json", str(script), "gguf", "pip install it", options=options)


def make_plan(folder: Path, *, rounds: int = 2, groups: tuple[str, ...] = ("decode",)) -> Plan:
    """Two fake peers, one of each kind; add to ``plan.specs`` as you like."""
    scripts = folder / "scripts"
    if not scripts.exists():
        scripts.mkdir()
        shutil.copy(SCRIPTS / "runner.py", scripts)
        (scripts / "limits.py").write_text(LIMITS)
        (scripts / "lockstep.py").write_text(LOCKSTEP)
        (scripts / "streaming.py").write_text(STREAMING)
        tiny_file(folder / "tiny.gguf")
    return Plan(
        model="tiny",
        gguf=folder / "tiny.gguf",
        cache=folder / "cache",
        specs=[
            spec("tenfold-exact", scripts / "streaming.py"),
            spec("llama.cpp", scripts / "lockstep.py"),
        ],
        pythons={"llama": sys.executable},
        cases=build_cases(SIZES, groups),
        sizes=SIZES,
        threads=1,
        rounds=rounds,
        limit=60.0,
        scripts=scripts,
    )
