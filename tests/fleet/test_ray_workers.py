"""Workers as actors of a Ray cluster: two local nodes, one of which is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.services import device, serving, tiny, until, want
from tenfold.client.base import collect
from tenfold.core.errors import ConfigError, DeadlineExceeded
from tenfold.fleet.ray_workers import RayCluster

PROMPT = list(range(3, 70))


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'tenfold\[ray\]'"):
        RayCluster("auto", device())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes; the first is where the router is."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    source = Path(sys.modules["tenfold"].__file__ or "").parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    config = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**node, "_system_config": config})
    made.add_node(**{key: node[key] for key in ("num_cpus", "object_store_memory")})
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_serve_and_one_is_killed(cluster: Any, tmp_path: Path) -> None:
    joined = RayCluster(cluster.address, device(kernels_mode="exact"))

    async def run() -> None:
        devices = joined.devices()
        assert [one.name for one in devices] == ["ray:0", "ray:1"]
        async with serving([tiny(tmp_path)], devices, make_worker=joined.worker) as service:
            assert service.status("tiny").devices == ["ray:0", "ray:1"]
            expected = (await collect(service.generate(want(PROMPT, 300)))).choices[0].token_ids
            again = await collect(service.generate(want(PROMPT, 4)))
            assert again.usage.cached_tokens == 64
            with pytest.raises(DeadlineExceeded):
                await collect(service.generate(want(PROMPT, 400, timeout=0.02)))
            assert {stats.device for stats in await service.stats()} == {"ray:0", "ray:1"}

            cold = [[n] * 40 for n in range(3, 7)]
            calls = [
                asyncio.create_task(collect(service.generate(want(prompt, 300, whole=True))))
                for prompt in (PROMPT, *cold)
            ]
            await until(lambda: all(status.requests for status in service.workers()))
            await until(lambda: any(call.generated for call in service.dispatch.calls()))
            lost = cluster.worker_nodes.copy().pop()
            away = next(name for name, at in joined._where.items() if at == lost.node_id)
            pid = service.worker(away).pid
            cluster.remove_node(lost, allow_graceful=False)
            os.kill(pid, signal.SIGKILL)  # a node goes with all that is on it
            replies = await asyncio.gather(*calls)
            assert replies[0].choices[0].token_ids == expected
            assert {len(reply.choices[0].token_ids) for reply in replies} == {300}
            await until(lambda: service.worker(away).state == "away")
            assert service.ready() and service.worker(away).restarts == 1

            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
            await until(lambda: service.worker(away).state == "up")
            await until(lambda: len(service.status("tiny").devices) == 2)

    try:
        asyncio.run(run())
    finally:
        joined.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_router_of_ray_workers_holds_no_torch(cluster: Any, tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from fleet.services import device, serving, tiny, want\n"
        "from tenfold.client.base import collect\n"
        "from tenfold.fleet.ray_workers import RayCluster\n"
        "async def run():\n"
        f"    joined = RayCluster({cluster.address!r}, device(), 1)\n"
        f"    model = tiny(Path({str(tmp_path)!r}))\n"
        "    async with serving([model], joined.devices(), make_worker=joined.worker) as service:\n"
        "        reply = await collect(service.generate(want('x')))\n"
        "        print(len(reply.choices[0].token_ids), 'torch' in sys.modules)\n"
        "asyncio.run(run())\n"
    )
    tiny(tmp_path)  # making a model takes torch, serving it does not
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "False"]
