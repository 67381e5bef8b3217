"""A simulation's file is read strictly: what it does not know it refuses, with the nearest word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.core.errors import ConfigError
from tenfold.fleet.simulator.config import load_simulation
from tenfold.fleet.workloads.trees import TreeOfThoughts
from tenfold.fleet.workloads.vtc import VTC

GOOD = """
[run]
seconds = 30
[cluster]
workers = 4
device = "h100"
[schedule]
policy = "dlpm"
quantum = 500
[weights]
tree-1 = 2
[[workload]]
kind = "tree-of-thoughts"
branch = 3
[[workload]]
kind = "vtc"
suite = "dist-shift"
"""


def load(tmp_path: Path, text: str, *sets: str) -> object:
    path = tmp_path / "sim.toml"
    path.write_text(text)
    return load_simulation(path, sets)


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "sim.toml"
    path.write_text(GOOD)
    found = load_simulation(path, ["cluster.workers=9", "run.seed=5"])
    assert found.cluster.workers == 9 and found.run.seed == 5 and found.run.seconds == 30
    assert found.schedule.quantum == 500 and found.weights == {"tree-1": 2}
    trees, vtc = found.workloads
    assert isinstance(trees, TreeOfThoughts) and trees.branch == 3 and trees.levels == 4
    assert isinstance(vtc, VTC) and vtc.suite == "dist-shift"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[cluster]\nworker = 4", "did you mean workers"),
        ("[clusters]\nworkers = 4", "did you mean cluster"),
        ("[schedule]\nquantums = 4", "did you mean quantum"),
        ("[schedule]\nquantum = -4", "greater than 0"),
        ("[routing]\npolicies = 'd2lpm'", "did you mean policy"),
        ("[run]\nseconds = 'long'", "seconds"),
        ("[[workload]]\nkind = 'chat'\nturn = 3", "did you mean turns"),
        ("[[workload]]\nkind = 'chats'", "long-context-qa"),
        ("[[workload]]\nturns = 3", "kind"),
        ("[[workload]]\nkind = 'chat'\nscenario = 'worse'", "scenario"),
    ],
)
def test_unknown_and_wrong_settings_are_refused(tmp_path: Path, line: str, said: str) -> None:
    text = line if "[[workload]]" in line else f"{line}\n[[workload]]\nkind = 'chat'"
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workload"):
        load(tmp_path, "[run]\nseconds = 3")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load(tmp_path, "[run")
    with pytest.raises(ConfigError, match=r"sim\.toml|cannot read"):
        load_simulation(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load(tmp_path, GOOD, "seconds=3")
