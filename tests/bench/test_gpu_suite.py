"""``make gpu`` without a GPU: what it runs, how it stops, and what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tenfold.bench import gpu


def test_a_process_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=0)"
    script = f"print('before', flush=True); {script.replace('stdin=0', 'stdin=subprocess.PIPE')}"
    waits = gpu.Job("waits", [sys.executable, "-c", script + "; import time; time.sleep(60)"],
                    tmp_path / "a.log")  # fmt: skip
    quick = gpu.Job("quick", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "b.log")
    stopped, failed = gpu.run_jobs([waits, quick], 2.0)
    assert stopped.status is None and stopped.word == "stopped at its limit"
    assert failed.status == 3 and failed.word == "failed (3)"


def test_files_with_gpu_tests_are_found() -> None:
    names = {file.name for file in gpu.gpu_test_files(gpu.ROOT / "tests")}
    assert {"test_gpu_pages.py", "test_triton_attention.py", "test_triton_rows.py"} <= names
    assert "test_sched_turns.py" not in names


@pytest.fixture
def parts() -> dict[str, dict[str, Any]]:
    return {
        "rates": {"copy_bytes_per_second": 2.5e12, "bf16_flops_per_second": 7e14},
        "shaped": {
            "decode_1_weight_bytes_per_second": 2e12,
            "prefill_flops_per_second": 3.5e14,
            "decode_many_tokens_per_second": 4000.0,
        },
        "transformers": {"skipped": "not installed"},
    }


def test_targets(parts: dict[str, dict[str, Any]]) -> None:
    shares = [row["got"] for row in gpu.targets(parts)]
    assert shares == [pytest.approx(0.8), pytest.approx(0.5), None]
    assert [row["got"] for row in gpu.targets({})] == [None, None, None]


def test_a_run_ends_in_time_and_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts are programs of a few words here; the last ones find no time left."""
    ran: list[str] = []

    def jobs(given: list[gpu.Job], limit: float) -> list[gpu.Outcome]:
        ran.extend(job.name for job in given)
        numbers = json.dumps({"copy_bytes_per_second": 1.0})
        status = 1 if given[0].name == "pages" else 0
        return [gpu.Outcome(job.name, status, 0.1, f"words\n{numbers}\n") for job in given]

    monkeypatch.setattr(gpu, "run_jobs", jobs)
    suite = gpu.Suite(tmp_path / "out")
    monkeypatch.setattr(suite, "limit", lambda part: 0.0 if part == "transformers" else 9.0)
    report = suite.run()
    saved = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert saved == report
    assert report["parts"]["rates"]["copy_bytes_per_second"] == 1.0
    assert report["parts"]["pages"]["result"] == "failed (1)"
    assert report["parts"]["transformers"]["result"].startswith("not run: no time")
    cases = [name for name in ran if name.startswith("tests-test_triton_attention")]
    assert cases == [f"tests-test_triton_attention-{kind}" for kind in gpu.TYPES]
    assert "transformers" not in ran and "shaped" in ran


def test_junit_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    assert gpu.read_junit(path) == {}
    path.write_text(
        '<testsuites><testsuite tests="4" failures="1" errors="0" skipped="2"/></testsuites>'
    )
    assert gpu.read_junit(path) == {"tests": 4, "failures": 1, "errors": 0, "skipped": 2}
