"""The whole comparison, with peers that have no model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.fake_peers import SIZES, make_plan, spec
from tenfold.bench.sidebyside.cases import build_cases
from tenfold.bench.sidebyside.cold import servers
from tenfold.bench.sidebyside.report import write_report
from tenfold.bench.sidebyside.results import Results
from tenfold.bench.sidebyside.run import Comparison, Plan
from tenfold.bench.sidebyside.specs import accepted_modes, choose, missing, pythons, specs
from tenfold.core.errors import ConfigError

LOADED = ("decode", "prefill", "streams", "chat")


def compare(plan: Plan, out: Path) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    results = Results(out / "peers.json", plan.key())
    Comparison(plan, results, said.append).run()
    return json.loads((out / "peers.json").read_text()), said


def test_rounds_interleave_and_everything_is_kept(tmp_path: Path) -> None:
    body, said = compare(make_plan(tmp_path, groups=LOADED), tmp_path)
    decode = [line.rpartition(":")[0] for line in said if line.startswith("decode")]
    assert decode == [
        f"decode, {what}, {peer}"
        for what in ("warm", "round 1 of 2", "round 2 of 2")
        for peer in ("tenfold-exact", "llama.cpp")
    ]
    assert list(body["cases"]) == ["decode", "prefill", "streams-2", "chat"]
    for case in body["cases"].values():
        assert len(case["rounds"]) == 2 and not case["errors"]
        assert all(set(one) == {"tenfold-exact", "llama.cpp"} for one in case["rounds"])
    assert body["cases"]["chat"]["median"]["llama.cpp"]["seconds"] > 0
    assert body["peers"]["llama.cpp"]["settings"] == {"threads": 1}
    assert body["peers"]["tenfold-exact"]["weight_bytes"] == (tmp_path / "tiny.gguf").stat().st_size
    assert body["machine"]["cpu"] and body["commands"] and body["limits"][0]["read_gb_s"] == 30.0


def test_fresh_processes_for_memory_and_the_first_token(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, rounds=1, groups=("busy", "memory", "first"))
    body, _ = compare(plan, tmp_path)
    assert not any(case["errors"] for case in body["cases"].values())
    for peer in ("tenfold-exact", "llama.cpp"):
        memory = body["cases"]["memory"]["median"][peer]
        assert memory["peak"] > memory["less_weights"] > 1 << 20
        assert body["cases"]["first"]["median"][peer]["seconds"] > 0
        assert set(body["cases"]["busy"]["median"][peer]) == {"idle", "busy", "share"}


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    compare(make_plan(tmp_path), tmp_path)
    body, said = compare(make_plan(tmp_path, groups=("decode", "prefill")), tmp_path)
    assert "decode: nothing to do" in said
    assert list(body["cases"]) == ["decode", "prefill"] and len(body["limits"]) == 2
    with pytest.raises(ConfigError, match="another rounds"):
        compare(make_plan(tmp_path, rounds=5), tmp_path)


@pytest.mark.parametrize(
    ("how", "where", "says"),
    [
        ("start", "decode", "RuntimeError: no start today"),
        ("die", "streams-2", "ended with code"),
        ("short", "streams-2", "did not give 3 tokens to every stream"),
    ],
)
def test_a_peer_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, how: str, where: str, says: str
) -> None:
    plan = make_plan(tmp_path, rounds=1, groups=("decode", "streams", "chat"))
    plan.specs.append(spec("sick", plan.scripts / "lockstep.py", fail=how))
    body, _ = compare(plan, tmp_path)
    assert says in body["cases"][where]["errors"]["sick"]
    for case in body["cases"].values():
        assert {"tenfold-exact", "llama.cpp"} <= set(case["median"])
    assert ("sick" in body["cases"]["decode"]["median"]) == (how != "start")


def test_absent_peers_are_listed_with_how_to_get_them(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, rounds=1)
    plan.specs.append(replace(plan.specs[1], name="gone", package="no_such_package"))
    plan.specs.append(replace(plan.specs[1], name="folder", reads="folder"))
    plan.pythons["transformers"] = sys.executable
    (plan.scripts / "export.py").write_text("raise SystemExit('cannot export')")
    body, _ = compare(plan, tmp_path)
    assert body["absent"]["gone"] == {
        "why": "no package no_such_package", "install": "pip install it"
    }  # fmt: skip
    assert "cannot export" in body["absent"]["folder"]["why"]
    assert body["cases"]["decode"]["peers"] == ["tenfold-exact", "llama.cpp"]


def test_the_report_has_tables_marks_and_a_picture(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, rounds=1, groups=LOADED)
    plan.specs.append(replace(plan.specs[1], name="gone", package="no_such_package"))
    plan.specs.append(spec("sick", plan.scripts / "lockstep.py", fail="short"))
    body, _ = compare(plan, tmp_path)
    for found in body["cases"]["decode"]["rounds"]:
        found["tenfold-exact"]["decode"], found["llama.cpp"]["decode"] = 50.0, 100.0
    screen = StringIO()
    written = write_report(body, tmp_path, Console(file=screen, width=200))
    assert [path.name for path in written] == ["peers.json", "peers.md", "peers.png"]
    page = (tmp_path / "peers.md").read_text()
    assert "| decode, one stream | 0.50 (≥ 1) ✗ |" in page
    assert "| gone | no package no_such_package | pip install it |" in page
    assert "| streams-2 | sick |" in page and "batch=7" in page
    assert "tenfold-exact and the machine's limits" in page
    assert body["machine"]["cpu"] in page and "0.50 (≥ 1) ✗" in screen.getvalue()
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_one_case_alone_makes_a_report(tmp_path: Path) -> None:
    body, _ = compare(make_plan(tmp_path, rounds=1, groups=("chat",)), tmp_path)
    assert write_report(body, tmp_path, Console(file=StringIO()))[2].exists()


def test_peers_are_chosen_by_name_or_family() -> None:
    every = specs(["exact", "fast"])
    assert [s.name for s in choose(every, ["llama", "tenfold-fast"])] == [
        "tenfold-fast", "llama.cpp", "llama.cpp-q4_0"
    ]  # fmt: skip
    assert choose(every, []) == every
    assert len({s.name for s in every}) == len(every)
    with pytest.raises(ConfigError, match="unknown peer ollama; choose from"):
        choose(every, ["ollama"])
    assert "exact" in accepted_modes()


def test_tenfold_is_held_to_an_instruction_set() -> None:
    best, held = specs(["fast", "fast@avx2"])[:2]
    assert best.name == "tenfold-fast" and best.options == {"mode": "fast", "arch": ""}
    assert held.name == "tenfold-fast@avx2" and held.options == {"mode": "fast", "arch": "avx2"}
    start = {spec.name: servers()["tenfold"](spec, "p", "m", 1, 2, 9) for spec in (best, held)}
    assert "kernels.arch=avx2" in start[held.name].command
    assert not any(word.startswith("kernels.arch") for word in start[best.name].command)


def test_pythons_are_given_by_family() -> None:
    table = pythons([f"vllm={sys.executable}"], "/usr/bin/other")
    assert table["vllm"] == sys.executable and table["llama"] == "/usr/bin/other"
    for wrong in ("vllm", "ollama=/bin/sh", "vllm=/no/such/python"):
        with pytest.raises(ConfigError, match="give FAMILY=PATH"):
            pythons([wrong], sys.executable)


def test_a_python_that_does_not_run_is_an_absent_peer(tmp_path: Path) -> None:
    one = spec("x", tmp_path / "x.py")
    assert missing(one, sys.executable) == ""
    assert "No such file" in missing(one, str(tmp_path / "python"))


def test_every_registered_script_is_there_and_every_case_has_room() -> None:
    from tenfold.bench.sidebyside.specs import SCRIPTS

    for one in specs(["exact"]):
        assert "class Engine" in (SCRIPTS / one.script).read_text()
    assert build_cases(SIZES)
