"""cluster.yaml on Ray's provider of simulated machines: a pending trial brings one with a GPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.cluster_utils import Cluster
from ray.util import get_node_ip_address

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TASK = f"{Path(__file__).parent}/faulty_task.py:task"
ADDRESS = get_node_ip_address()
HEAD = "ray.head.default"  # what the provider calls it


def simulated(gcs_address: str) -> dict[str, Any]:
    """cluster.yaml with another provider, and machines whose memory fits this one."""
    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    types = config["available_node_types"]
    for kind in types.values():
        kind["node_config"] = {}
        kind["resources"]["object_store_memory"] = 80 * 2**20
    types[HEAD] = {**types.pop(config["head_node_type"]), "max_workers": 0}
    return {
        **config,
        "available_node_types": types,
        "head_node_type": HEAD,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": gcs_address,
        },
        "idle_timeout_minutes": 0.1,
        "file_mounts": {},
        "setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_FAKE_CLUSTER", "1")
        environment.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
        config = tmp_path / "cluster.yaml"
        config.write_text(json.dumps(simulated(f"{ADDRESS}:{port}")))
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 4,
                "gcs_server_port": port,
                "node_ip_address": ADDRESS,
                "object_store_memory": 80 * 2**20,
                "autoscaling_config": str(config),
            },
        )
        yield cluster
        cluster.shutdown()


def workers(cluster: Cluster) -> list[bool]:
    """Whether they live, of all that there have been."""
    nodes = cluster.global_state.node_table()
    return [node["Alive"] for node in nodes if node["NodeID"] != cluster.head_node.node_id]


def test_a_pending_trial_brings_a_machine_which_leaves_when_idle(
    cluster: Cluster, tmp_path: Path
) -> None:
    assert workers(cluster) == []
    spec = {
        "task": TASK,
        "accelerator": "eyeriss-like",
        "output": str(tmp_path / "run"),
        "algorithm": "random",
        "budget": 18,
        "resources": {"address": cluster.address, "evaluator_gpus": 0.25},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    result = subprocess.run(
        [sys.executable, "-m", "search.cli", "search", str(tmp_path / "spec.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["state"] == "completed"
    assert workers(cluster)  # without one the trial would wait for a GPU for ever
    while any(workers(cluster)):
        time.sleep(0.5)
