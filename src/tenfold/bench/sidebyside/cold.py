"""From the command to the first token: a fresh process, timed from the moment it is started.

Over HTTP where the peer is a server (its own command, then the first streamed token of a
completion); else its script is started, loads, and computes one token.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from tenfold.bench.sidebyside.process import PeerFailed
from tenfold.bench.sidebyside.specs import PeerSpec
from tenfold.bench.sidebyside.tree import end_session

POLL_SECONDS = 0.01
END_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to start a server, and what it calls the model."""

    command: list[str]
    model: str
    environment: dict[str, str]


def servers() -> dict[str, Callable[[PeerSpec, str, str, int, int, int], ServerCommand]]:
    """By a spec's ``server``: from (spec, python, model path, port, threads, context length)."""
    return {"tenfold": _tenfold, "vllm": _vllm}


def _tenfold(
    spec: PeerSpec, python: str, model: str, port: int, threads: int, length: int
) -> ServerCommand:
    command = [
        python, "-c", "from tenfold.cli.main import run; run()", "serve", f"model={model}",
        "--port", str(port), "--set", f"device.threads={threads}",
        "--set", f"kernels.mode={spec.options['mode']}",
    ]  # fmt: skip
    # The user's own clients, with their keys, are not this server's: a file that never is there.
    command += ["--set", f"server.state={gettempdir()}/tenfold-bench-{os.getpid()}/clients.json"]
    if spec.options["arch"]:
        command += ["--set", f"kernels.arch={spec.options['arch']}"]
    return ServerCommand(command, "model", {})


def _vllm(
    spec: PeerSpec, python: str, model: str, port: int, threads: int, length: int
) -> ServerCommand:
    """The same settings as its peer script's; vLLM's compiled code is cached by earlier starts."""
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--served-model-name", "model", "--port", str(port), "--host", "127.0.0.1",
        "--max-model-len", str(length), "--max-num-seqs", "64",
    ]  # fmt: skip
    environment = {"VLLM_LOGGING_LEVEL": "WARNING"}
    if spec.device == "cpu":
        cores = sorted(os.sched_getaffinity(0))[:threads]
        words = set(Path("/proc/cpuinfo").read_text().split())
        dtype = "bfloat16" if words & {"avx512_bf16", "amx_bf16"} else "float32"
        command += ["--dtype", dtype]
        environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        environment["VLLM_CPU_KVCACHE_SPACE"] = "4"
    if spec.options["eager"]:
        command.append("--enforce-eager")
    return ServerCommand(command, "model", environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_token(
    start: ServerCommand, port: int, prompt: list[int], log: Path, limit: float
) -> float:
    """Seconds from starting the server to the first streamed token. The server is ended again.
    Raises PeerFailed if it ends by itself or takes longer than ``limit``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            start.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=os.environ | start.environment, start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                if process.poll() is not None:
                    said = " ".join(log.read_text(errors="replace")[-400:].split())
                    raise PeerFailed(f"the server ended with code {process.returncode}: {said}")
                if time.perf_counter() - began > limit:
                    raise PeerFailed(f"no first token within {limit:.0f} s")
                if _listens(port) and _asked(port, start.model, prompt, limit):
                    return time.perf_counter() - began
                time.sleep(POLL_SECONDS)
        finally:
            _end(process)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _asked(port: int, model: str, prompt: list[int], limit: float) -> bool:
    """Whether a token came. Any refusal, or a closed connection, means: not ready yet."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True,
        "ignore_eos": True,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        if answer.status == 400:
            raise PeerFailed(f"the server refuses the request: {answer.read(400).decode()}")
        if answer.status != 200:
            return False
        return any(_is_token(line) for line in answer)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_token(line: bytes) -> bool:
    if not line.startswith(b"data: {"):
        return False
    choices = json.loads(line[6:]).get("choices") or [{}]
    return "text" in choices[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then make sure of its whole session."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=END_SECONDS)
    end_session(process.pid)
    process.wait()
