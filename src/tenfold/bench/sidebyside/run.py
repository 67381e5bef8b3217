"""The comparison: peers are started once and stopped while others run; rounds interleave.

Cases that need a fresh process (memory, first token) come last, when no other peer is alive.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenfold.bench.report import machine
from tenfold.bench.sidebyside.cases import Case, Draws, Sizes, build_cases, rates
from tenfold.bench.sidebyside.cold import ServerCommand, first_token, free_port, servers
from tenfold.bench.sidebyside.process import PeerFailed, PeerProcess
from tenfold.bench.sidebyside.results import Metrics, Results, Round
from tenfold.bench.sidebyside.specs import SCRIPTS, PeerSpec, missing
from tenfold.bench.sidebyside.targets import work_of

WARM_OUTPUT = 16
FRESH = ("memory", "first")
_SPIN = "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nwhile True: pass"


@dataclass(slots=True)
class Plan:
    """What to compare, on what, how often. ``limit``: seconds that any one answer may take."""

    model: str
    gguf: Path
    cache: Path
    specs: list[PeerSpec]
    pythons: dict[str, str]
    cases: list[Case]
    sizes: Sizes
    threads: int
    rounds: int = 3
    seed: int = 0
    quick: bool = False
    limit: float = 1800.0
    scripts: Path = SCRIPTS

    def key(self) -> dict[str, Any]:
        """Runs that agree in this may share a file."""
        return {
            "model": self.model, "weights": self.gguf.name, "bytes": self.gguf.stat().st_size,
            "threads": self.threads, "rounds": self.rounds, "seed": self.seed, "quick": self.quick,
            "sizes": json.loads(json.dumps(asdict(self.sizes))), "commit": machine()["commit"],
        }  # fmt: skip


class Comparison:
    """One run of a plan. ``say`` is told what is going on."""

    def __init__(self, plan: Plan, results: Results, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.results = results
        self.say = say
        self._alive: dict[str, PeerProcess] = {}
        self._dead: dict[str, str] = {}
        # Every peer is started for the largest case, whichever cases are run.
        every = [*build_cases(plan.sizes), *plan.cases]
        self._length = -(-max(case.length for case in every) // 256) * 256
        self._streams = max(case.streams for case in every)

    def run(self) -> None:
        """Everything that is not in the results yet. Peers that fail are recorded, not fatal."""
        here = self._present()
        body = self.results.body
        body["machine"] = machine()
        body["commands"] = list(dict.fromkeys([*body["commands"], body["machine"]["command"]]))
        body["limits"].append(self._limits())
        body["work"] = work_of(self.plan.gguf)
        try:
            for case in sorted(self.plan.cases, key=lambda case: case.kind in FRESH):
                if case.kind in FRESH:
                    self._close()
                self._case(case, [s for s in here if not s.only or case.kind in s.only])
        finally:
            self._close()
        self.results.write()

    def _present(self) -> list[PeerSpec]:
        absent = self.results.body["absent"] = {}
        here = []
        for spec in self.plan.specs:
            why = missing(spec, self.plan.pythons[spec.family])
            if not why and spec.reads == "folder":
                why = self._exported()
            if why:
                absent[spec.name] = {"why": why, "install": spec.install}
                self.say(f"{spec.name} is absent: {why}")
            else:
                here.append(spec)
        return here

    def _exported(self) -> str:
        """Make the dequantised folder if it is not there; why that cannot be, or ""."""
        folder = self.plan.cache / "folder"
        if folder.exists():
            return ""
        self.say("dequantising the model into a folder")
        self.plan.cache.mkdir(parents=True, exist_ok=True)
        script = str(self.plan.scripts / "export.py")
        command = [self.plan.pythons["transformers"], script, str(self.plan.gguf), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return ""
        lines = done.stderr.strip().splitlines()
        return f"it reads a folder, and the export failed: {lines[-1] if lines else ''}"

    def _limits(self) -> dict[str, Any]:
        self.say("measuring what the machine can do")
        command = [sys.executable, str(self.plan.scripts / "limits.py"), str(self.plan.threads)]
        done = subprocess.run(
            [*command, "quick"] if self.plan.quick else command, capture_output=True, text=True
        )
        if done.returncode != 0:
            return {"error": done.stderr.strip()[-300:]}
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    # --- one case -------------------------------------------------------------------------------
    def _case(self, case: Case, specs: list[PeerSpec]) -> None:
        names = [spec.name for spec in specs]
        if not specs or self.results.done(case.name, names):
            self.say(f"{case.name}: nothing to do")
            return
        errors: dict[str, str] = {}
        rounds: list[Round] = []
        for number in range(-1, self.plan.rounds):  # the first warms, and does not count
            found: Round = {}
            for spec in specs:
                if spec.name not in errors:
                    self._turn(case, spec, number, found, errors)
            if number >= 0:
                rounds.append(found)
        self.results.record(asdict(case), names, rounds, errors)

    def _turn(
        self, case: Case, spec: PeerSpec, number: int, found: Round, errors: dict[str, str]
    ) -> None:
        draws = Draws(self.plan.seed, case.name, number)
        what = "warm" if number < 0 else f"round {number + 1} of {self.plan.rounds}"
        began = time.perf_counter()
        try:
            found[spec.name] = self._measure(case, spec, draws, warm=number < 0)
            self.say(f"{case.name}, {what}, {spec.name}: {time.perf_counter() - began:.1f} s")
        except PeerFailed as error:
            errors[spec.name] = error.message
            self.say(f"{case.name}, {what}: {error.message}")
            if process := self._alive.pop(spec.name, None):
                process.close()

    def _measure(self, case: Case, spec: PeerSpec, draws: Draws, *, warm: bool) -> Metrics:
        if case.kind == "memory":
            return {} if warm else self._memory(case, spec, draws)
        if case.kind == "first":
            return self._first(case, spec, draws)
        with self._awake(spec) as process:
            if warm:
                process.ask("prepare", self.plan.limit, streams=case.streams, length=case.length)
            if case.kind == "chat":
                return self._chat(case, process, draws, warm=warm)
            output = min(case.output, WARM_OUTPUT) if warm else case.output
            prompts = draws.rows(case.streams, case.prompt)
            idle = self._ask_run(process, prompts, output)
            if case.kind == "run" or warm:
                return idle
            with spinning():
                busy = self._ask_run(process, draws.rows(case.streams, case.prompt), output)
            return {
                "idle": idle["decode"],
                "busy": busy["decode"],
                "share": busy["decode"] / idle["decode"],
            }

    def _ask_run(self, process: PeerProcess, prompts: list[list[int]], output: int) -> Metrics:
        answer = process.ask("run", self.plan.limit, prompts=prompts, output=output)
        if {len(row) for row in answer["times"]} != {output}:
            raise PeerFailed(f"{process.name} did not give {output} tokens to every stream")
        return rates(answer["times"], sum(map(len, prompts)))

    def _chat(self, case: Case, process: PeerProcess, draws: Draws, *, warm: bool) -> Metrics:
        turns = [draws.rows(case.streams, case.prompt) for _ in range(1 if warm else case.turns)]
        output = min(case.output, WARM_OUTPUT) if warm else case.output
        answer = process.ask(
            "chat", self.plan.limit, system=draws.row(case.shared), turns=turns, output=output
        )
        first = sorted(answer["first"])
        return {
            "seconds": answer["seconds"],
            "output": len(turns) * case.streams * output / answer["seconds"],
            "ttft_p50": first[len(first) // 2],
            "ttft_worst": first[-1],
        }

    def _memory(self, case: Case, spec: PeerSpec, draws: Draws) -> Metrics:
        """In a fresh process, with room for the same number of tokens in every peer."""
        process, answer = self._start(spec)
        self._note(spec, answer)
        try:
            length = self.plan.sizes.capacity // case.streams
            process.ask("prepare", self.plan.limit, streams=case.streams, length=length)
            with process.peak() as seen:
                prompts = draws.rows(case.streams, case.prompt)
                self._ask_run(process, prompts, case.output)
        finally:
            process.close()
        return {"peak": seen.peak, "less_weights": max(0, seen.peak - answer["weight_bytes"])}

    def _first(self, case: Case, spec: PeerSpec, draws: Draws) -> Metrics:
        prompt = draws.row(case.prompt)
        log = self.plan.cache / "logs" / f"{spec.name}-first.log"
        if spec.server:
            port = free_port()
            python = self.plan.pythons[spec.family]
            start = servers()[spec.server](
                spec, python, self._model(spec), port, self.plan.threads, self._length
            )
            note = self.results.body["peers"].setdefault(spec.name, {"device": spec.device})
            note["server"] = shown(start)
            return {"seconds": first_token(start, port, prompt, log, self.plan.limit)}
        began = time.perf_counter()
        process, _ = self._start(spec, streams=1, length=case.length)
        try:
            self._ask_run(process, [prompt], 1)
            return {"seconds": time.perf_counter() - began}
        finally:
            process.close()

    # --- processes ------------------------------------------------------------------------------
    def _model(self, spec: PeerSpec) -> str:
        return str(self.plan.gguf if spec.reads == "gguf" else self.plan.cache / "folder")

    def _start(
        self, spec: PeerSpec, *, streams: int = 0, length: int = 0
    ) -> tuple[PeerProcess, dict[str, Any]]:
        plan = self.plan
        command = [plan.pythons[spec.family], str(plan.scripts / "runner.py"),
                   str(plan.scripts / spec.script)]  # fmt: skip
        process = PeerProcess(spec.name, command, plan.cache / "logs" / f"{spec.name}.log")
        try:
            answer = process.ask(
                "start", plan.limit, model=self._model(spec), cache=str(plan.cache),
                threads=plan.threads, streams=streams or self._streams,
                length=length or self._length, capacity=plan.sizes.capacity, device=spec.device,
                options=spec.options,
            )  # fmt: skip
        except BaseException:
            process.close()
            raise
        weights = Path(answer["weights"])
        parts = weights.glob("*.safetensors") if weights.is_dir() else [weights]
        answer["weight_bytes"] = sum(part.stat().st_size for part in parts)
        return process, answer

    @contextmanager
    def _awake(self, spec: PeerSpec) -> Iterator[PeerProcess]:
        """The peer's process, started if it is not there, and alone awake in the block."""
        if spec.name in self._dead:
            raise PeerFailed(self._dead[spec.name])
        if spec.name not in self._alive:
            self.say(f"starting {spec.name}")
            try:
                began = time.perf_counter()
                process, answer = self._start(spec)
            except PeerFailed as error:
                self._dead[spec.name] = error.message  # it would fail in every case, and take long
                raise
            self._alive[spec.name] = process
            self._note(spec, answer, start_seconds=time.perf_counter() - began)
        process = self._alive[spec.name]
        process.resume()
        try:
            yield process
        finally:
            process.pause()

    def _note(self, spec: PeerSpec, answer: dict[str, Any], **more: Any) -> None:
        """What a peer said of itself, beside its numbers."""
        note = self.results.body["peers"].setdefault(spec.name, {"device": spec.device})
        note |= {key: answer[key] for key in ("version", "settings", "weight_bytes")} | more

    def _close(self) -> None:
        while self._alive:
            self._alive.popitem()[1].close()


def shown(start: ServerCommand) -> str:
    """A server's command without this machine's paths and this start's port."""
    words = [f"{key}={value}" for key, value in start.environment.items()] + start.command[1:]
    return re.sub(r"(--port) \d+", r"\1 PORT", re.sub(r"/(?:[^/ ]+/)+", "", " ".join(words)))


@contextmanager
def spinning() -> Iterator[None]:
    """Another process that keeps the first core busy all the time."""
    process = subprocess.Popen([sys.executable, "-c", _SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()
