"""Every GPU test and benchmark in one go: ``python -m tenfold.bench.gpu OUT``, or ``make gpu``.

Runs on whatever Python starts it and installs nothing. Each part has a budget in seconds, the whole
has one too, and a part that passes its own is ended; what it had is kept. Needs the standard
library only; the parts run as processes of their own. Not yet run on a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TOTAL = 530.0
BUDGETS = {
    "native": 90.0,
    "tests": 190.0,
    "rates": 30.0,
    "pages": 30.0,
    "shaped": 120.0,
    "transformers": 150.0,
}
TYPES = ("cuda-f32", "cuda-f16", "cuda-bf16")
"""Test cases that differ in the type of their numbers run side by side: most of the time goes into
compiling kernels, which is the CPU's work."""


@dataclass(slots=True)
class Job:
    """One process: its name, what to run, and where its words go."""

    name: str
    command: list[str]
    log: Path


@dataclass(slots=True)
class Outcome:
    """How a process ended: its exit status, or None where it was stopped at its limit."""

    name: str
    status: int | None
    seconds: float
    output: str = field(repr=False, default="")

    @property
    def word(self) -> str:
        if self.status is None:
            return "stopped at its limit"
        return "done" if self.status == 0 else f"failed ({self.status})"


def run_jobs(jobs: Sequence[Job], limit: float) -> list[Outcome]:
    """All of them at once; those still running after ``limit`` seconds are ended, with children."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)
    environment.setdefault("HF_HUB_OFFLINE", "1")
    begin = time.monotonic()
    running = []
    for job in jobs:
        with job.log.open("w") as log:
            process = subprocess.Popen(
                job.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        running.append((job, process))
    return [_wait(job, process, begin, limit) for job, process in running]


def _wait(job: Job, process: subprocess.Popen[bytes], begin: float, limit: float) -> Outcome:
    status: int | None
    try:
        status = process.wait(max(0.0, begin + limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = None
    text = job.log.read_text(errors="replace")
    return Outcome(job.name, status, time.monotonic() - begin, text)


class Suite:
    """One run of everything into the folder ``out``."""

    def __init__(self, out: Path, total: float = TOTAL) -> None:
        self.out = out
        self.report: dict[str, Any] = {"parts": {}}
        self._end = time.monotonic() + total
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, Any]:
        """The report, which is also in ``gpu.json`` after every part."""
        self.native()
        self.tests()
        for part in ("rates", "pages", "shaped", "transformers"):
            self.measure(part)
        self.report["targets"] = targets(self.report["parts"])
        self._save()
        return self.report

    def limit(self, part: str) -> float:
        """Seconds that a part may take: its own budget, or less where less is left."""
        return min(BUDGETS[part], self._end - time.monotonic())

    def native(self) -> None:
        """Build the C++ kernels with the tools that are here, or say why not."""
        if find_spec("tenfold._native"):
            return self._note("native", "there already", 0.0)
        missing = [name for name in ("nanobind",) if not find_spec(name)]
        if subprocess.run(["sh", "-c", "command -v cmake"], capture_output=True).returncode:
            missing.append("cmake")
        if missing:
            return self._note("native", f"not built: {', '.join(missing)} not installed", 0.0)
        build = self.out / "native"
        script = (
            f"cmake -S native -B '{build}' -DPython_EXECUTABLE='{sys.executable}' "
            f"-DCMAKE_BUILD_TYPE=Release && cmake --build '{build}' -j "
            f"&& cp '{build}'/_native*.so src/tenfold/"
        )
        (outcome,) = run_jobs([self._job("native", ["sh", "-c", script])], self.limit("native"))
        self._note("native", outcome.word, outcome.seconds)

    def tests(self) -> None:
        """Files that hold a ``gpu`` mark, and no others: those may want packages not here."""
        if not find_spec("pytest"):
            return self._note("tests", "not run: pytest is not installed", 0.0)
        jobs = []
        for file in gpu_test_files(ROOT / "tests"):
            cases = TYPES if "PLACES" in file.read_text() else ("",)
            jobs += [self._pytest(file, case) for case in cases]
        outcomes = run_jobs(jobs, self.limit("tests"))
        found = {
            outcome.name: {
                "result": outcome.word,
                "seconds": round(outcome.seconds, 1),
                **read_junit(self.out / f"{outcome.name}.xml"),
            }
            for outcome in outcomes
        }
        bad = [o.name for o in outcomes if o.status not in (0, 5)]
        word = f"failed: {', '.join(bad)}" if bad else "passed"
        longest = max((o.seconds for o in outcomes), default=0.0)
        self._note("tests", word, longest, files=found)

    def _pytest(self, file: Path, case: str) -> Job:
        name = "-".join(["tests", file.stem, *([case] if case else [])])
        words = [
            sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
            "--override-ini=addopts=", f"--junitxml={self.out / name}.xml", str(file),
        ]  # fmt: skip
        return self._job(name, [*words, *(["-k", case] if case else [])])

    def measure(self, part: str) -> None:
        """One part of ``engine.cuda_measure``; its last line is its result."""
        limit = self.limit(part)
        if limit < 5:
            return self._note(part, "not run: no time was left", 0.0)
        command = [sys.executable, "-m", "tenfold.engine.cuda_measure", part]
        (outcome,) = run_jobs([self._job(part, command)], limit)
        numbers: dict[str, Any] = {}
        if outcome.status == 0:
            numbers = json.loads(outcome.output.strip().splitlines()[-1])
        else:
            numbers["said"] = outcome.output.strip().splitlines()[-1:]
        self._note(part, str(numbers.get("skipped", outcome.word)), outcome.seconds, **numbers)

    def _job(self, name: str, command: list[str]) -> Job:
        return Job(name, command, self.out / f"{name}.log")

    def _note(self, part: str, result: str, seconds: float, **more: Any) -> None:
        self.report["parts"][part] = {"result": result, "seconds": round(seconds, 1), **more}
        print(f"{part:14} {result} ({seconds:.0f} s)", flush=True)
        self._save()

    def _save(self) -> None:
        (self.out / "gpu.json").write_text(json.dumps(self.report, indent=1) + "\n")


def gpu_test_files(tests: Path) -> list[Path]:
    """Test files that name the mark, themselves or through ``PLACES``."""
    return [
        file
        for file in sorted(tests.rglob("test_*.py"))
        if any(word in file.read_text() for word in ("pytest.mark.gpu", "import PLACES"))
    ]


def read_junit(path: Path) -> dict[str, int]:
    """How many tests ran, failed and were skipped; nothing where there is no such file."""
    if not path.exists():
        return {}
    suite = ElementTree.parse(path).getroot().find("testsuite")
    if suite is None:
        return {}
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table: a share that was wanted, and what was measured (None: it was not)."""

    measure: str
    wanted: float
    got: float | None


def targets(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The three rows of the plan, from the parts' numbers."""

    def share(a: tuple[str, str], b: tuple[str, str]) -> float | None:
        above, below = (parts.get(part, {}).get(name) for part, name in (a, b))
        return above / below if above and below else None

    rows = [
        Target(
            "decode, 1 stream: weight bytes per second / copy bandwidth",
            0.75,
            share(
                ("shaped", "decode_1_weight_bytes_per_second"), ("rates", "copy_bytes_per_second")
            ),
        ),
        Target(
            "prefill, 8192 tokens: products per second / bf16 rate",
            0.55,
            share(("shaped", "prefill_flops_per_second"), ("rates", "bf16_flops_per_second")),
        ),
        Target(
            "decode, 64 streams: tokens per second / transformers, static and compiled",
            3.0,
            share(
                ("shaped", "decode_many_tokens_per_second"),
                ("transformers", "decode_many_tokens_per_second"),
            ),
        ),
    ]
    return [asdict(row) for row in rows]


def main(arguments: Sequence[str]) -> int:
    """Runs the suite; 1 where a part failed or was stopped."""
    suite = Suite(Path(arguments[0] if arguments else "build/gpu").resolve())
    report = suite.run()
    print()
    for row in report["targets"]:
        got = "not measured" if row["got"] is None else f"{row['got']:.2f}"
        print(f"{row['measure']:76} {got:>12}  (wanted {row['wanted']:.2f})")
    print(f"\n{suite.out / 'gpu.json'}")
    bad = [p for p in report["parts"].values() if p["result"].startswith(("failed", "stopped"))]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
