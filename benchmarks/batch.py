"""A batch of 24 experiments on a simulated cluster that loses one machine and gains another.

    python benchmarks/batch.py --output /tmp/batch

Two machines with a simulated GPU each, of which every evaluator takes a quarter; two small networks
whose evaluations wait for as long as those of larger ones take, two accelerators, three algorithms,
two seeds. When a third of the experiments are complete a machine is killed, and another joins.
Prints how long that took, what became of the experiments, how many configurations were evaluated,
those that were evaluated again, and the share of GPU slots that were reserved while experiments
waited for one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "search.cli"]
NODE: dict[str, Any] = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 * 2**20}
TASKS = ROOT / "tests/search/faulty_task.py"  # its evaluations can be told how long to take


def specification(output: Path, tasks: list[str], budget: int) -> dict[str, Any]:
    return {
        "output": str(output),
        "spec": {"budget": budget},
        "experiments": [
            {
                "grid": {
                    "task": tasks,
                    "accelerator": ["eyeriss-like", "nvdla-small"],
                    "algorithm": ["ppo", "dp+fitted", "random"],
                    "seeds": [[0], [1]],
                }
            }
        ],
        "resources": {
            "evaluators": 1,
            "evaluator_gpus": 0.25,
            "evaluator_cpus": 0.1,
            "trainer_cpus": 0.1,
        },
    }


def completed(output: Path) -> int:
    states = output.glob("experiments/*/state.json")
    return sum('"completed"' in state.read_text() for state in states)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.5)


def run(output: Path, tasks: list[str], budget: int) -> None:
    output.mkdir(parents=True)
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(specification(output, tasks, budget)))
    start = time.perf_counter()
    head = {"num_cpus": 0, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(**NODE)
        arguments = ["batch", str(path), "--address", cluster.address]
        with subprocess.Popen([*COMMAND, *arguments], cwd=ROOT) as process:
            wait_for(lambda: completed(output) >= 8, process)
            print(f"{time.perf_counter() - start:.0f} s: one machine dies, another comes")
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
            cluster.add_node(**NODE)
        print(f"exit code {process.returncode}")
    finally:
        cluster.shutdown()
    report(output, time.perf_counter() - start)


def report(output: Path, seconds: float) -> None:
    command = [*COMMAND, "status", str(output), "--json"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    status = json.loads(printed.stdout)
    runs = (output / "experiments").iterdir()
    ledgers = [pd.read_parquet(folder / "ledger") for folder in runs]
    again = sum(int(rows.duplicated(["config_hash", "split"]).sum()) for rows in ledgers)
    print(f"{seconds:.0f} s: {status['counts']}, {sum(map(len, ledgers))} rows in the ledgers")
    print(f"evaluated again in one experiment: {again}")
    print(f"GPU slots busy while experiments waited: {100 * status['utilization']:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder that does not exist yet")
    parser.add_argument("--tasks", nargs=2, default=[f"{TASKS}:task", f"{TASKS}:wide_task"])
    parser.add_argument("--budget", type=int, default=18, help="evaluations of an experiment")
    parser.add_argument("--seconds", type=float, default=10.0, help="that an evaluation takes")
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "seconds").write_text(str(arguments.seconds))
        os.environ["JOULECUT_TEST_FAULTS"] = folder
        run(arguments.output.absolute(), arguments.tasks, arguments.budget)


if __name__ == "__main__":
    main()
