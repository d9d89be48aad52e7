"""Searches that lose processes, machines, files and patience, and go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faulty_task import FAULTS
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TASK = f"{Path(__file__).parent}/faulty_task.py:task"
BUDGET = 30
BASELINES = 6
KILLS = int(os.environ.get("JOULECUT_TEST_KILLS", "3"))
"""Of one run's driver; docs/cluster.md says how often it has been tried."""
QUICK_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}


_started: list[subprocess.Popen[str]] = []


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of the commands that a test starts; what is left of them at its end is killed."""
    (tmp_path / "faults").mkdir()
    yield {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        FAULTS: str(tmp_path / "faults"),
    }
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def joulecut(environment: dict[str, str], *arguments: str | Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "search.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    _started.append(process)
    return process


def search(
    environment: dict[str, str],
    folder: Path,
    *,
    algorithm: str = "random",
    budget: int = BUDGET,
    **resources: Any,
) -> subprocess.Popen[str]:
    spec = {
        "task": TASK,
        "accelerator": "eyeriss-like",
        "output": str(folder / "run"),
        "algorithm": algorithm,
        "budget": budget,
        "resources": {"num_cpus": 2, **resources},
    }
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec))
    return joulecut(environment, "search", path)


def finish(process: subprocess.Popen[str], code: int = 0, timeout: float = 400) -> str:
    """What a command wrote to stderr; it must end with this exit code."""
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == code, errors
    return errors


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows(run: Path) -> pd.DataFrame:
    parts = [pd.read_parquet(part) for part in sorted((run / "ledger").glob("part-*.parquet"))]
    return pd.concat(parts) if parts else pd.DataFrame({"split": [], "config_hash": []})


def searched(run: Path, count: int) -> Callable[[], bool]:
    return lambda: int((rows(run)["split"] == "search").sum()) >= count


def status(environment: dict[str, str], run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        joulecut(environment, "status", run, "--json").communicate()[0]
    )
    return document


def check_whole(run: Path, budget: int = BUDGET) -> pd.DataFrame:
    """The budget is spent, on distinct configurations, and what matters is verified."""
    found = rows(run)
    assert not found.duplicated(["config_hash", "split"]).any()
    assert (found["split"] == "search").sum() == budget
    assert (found["split"] == "test").sum() >= BASELINES
    assert json.loads((run / "state.json").read_text())["state"] == "completed"
    return found


def check_resumed(environment: dict[str, str], run: Path, before: pd.DataFrame) -> None:
    """A run goes on to its end and keeps what was there."""
    finish(joulecut(environment, "resume", run))
    check_kept(before, check_whole(run))


def check_kept(before: pd.DataFrame, after: pd.DataFrame) -> None:
    kept = before.merge(after, on=["config_hash", "split", "time"])
    assert len(kept) == len(before)


@pytest.mark.timeout(3600)
def test_a_driver_that_is_killed_again_and_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    chance = random.Random(0)
    environment = {**environment, "JOULECUT_TEST_SECONDS": "0.3"}
    run = tmp_path / "run"
    process = search(environment, tmp_path)
    for moment in sorted(chance.choices(range(1, BUDGET), k=KILLS)):
        wait_for(searched(run, moment), process)
        time.sleep(chance.random())
        process.kill()
        finish(process, -signal.SIGKILL)
        before = rows(run)
        process = joulecut(environment, "resume", run)
    finish(process)
    check_kept(before, check_whole(run))


def test_a_driver_told_to_end(environment: dict[str, str], tmp_path: Path) -> None:
    process = search({**environment, "JOULECUT_TEST_SECONDS": "0.3"}, tmp_path)
    wait_for(searched(tmp_path / "run", 10), process)
    process.terminate()
    assert "stopped; go on with: joulecut resume" in finish(process)
    found = status(environment, tmp_path / "run")
    assert (found["state"], found["message"]) == ("interrupted", "stopped by SIGTERM")
    assert (tmp_path / "run" / "report" / "report.html").exists()
    check_resumed(environment, tmp_path / "run", rows(tmp_path / "run"))


def test_evaluations_that_die_hang_raise_and_return_nan(
    environment: dict[str, str], tmp_path: Path
) -> None:
    for fault in ("1 dies", "2 hangs", "3 hangs", "4 hangs", "5 raises", "6 is not a number"):
        (tmp_path / "faults" / fault).touch()
    finish(search(environment, tmp_path, evaluators=1, evaluation_timeout="8s"))
    found = check_whole(tmp_path / "run")
    failed = found[found["accuracy"].isna()].sort_values("time")
    reasons = ("no result in 8 s, 2 times", "no images left", "nan is not allowed")
    for error, reason in zip(failed["error"], reasons, strict=True):
        assert reason in error
    assert list((tmp_path / "faults").iterdir()) == []


def test_a_hanging_verification(environment: dict[str, str], tmp_path: Path) -> None:
    finish(search(environment, tmp_path))
    run = tmp_path / "run"
    for part in (run / "ledger").glob("part-*.parquet"):
        if (pd.read_parquet(part)["split"] == "test").any():
            part.unlink()
    (tmp_path / "faults" / "hangs").touch()
    specification = (run / "spec.yaml").read_text()
    (run / "spec.yaml").write_text(specification.replace("1h", "10s"))
    finish(joulecut(environment, "resume", run))
    check_whole(run)


def test_torn_files_of_the_ledger(environment: dict[str, str], tmp_path: Path) -> None:
    finish(search(environment, tmp_path))
    run = tmp_path / "run"
    parts = sorted((run / "ledger").glob("part-*.parquet"))
    parts[0].write_bytes(parts[0].read_bytes()[:-20])
    parts[1].write_bytes(b"")
    content = bytearray(parts[2].read_bytes())
    content[len(content) // 3] ^= 0xFF
    parts[2].write_bytes(content)

    assert "joulecut resume will put it aside" in finish(joulecut(environment, "report", run), 2)
    errors = finish(joulecut(environment, "resume", run))

    for part in parts[:3]:
        assert f"damaged ledger file moved to {run}/damaged/{part.name}" in errors
        assert (run / "damaged" / part.name).exists()
    check_whole(run)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], Callable[[], None]]]:
    """A disk of its own at ``folder``; yields what fills it and returns what makes room again."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    filler = folder / "filler"

    def fill() -> Callable[[], None]:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        return filler.unlink

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_storage_that_refuses_writes(environment: dict[str, str], tmp_path: Path) -> None:
    """For a while: a file where the folder should be refuses everyone. Then the disk is full."""
    with small_disk(tmp_path / "disk") as fill:
        process = search({**environment, "JOULECUT_TEST_SECONDS": "0.3"}, tmp_path / "disk")
        run = tmp_path / "disk" / "run"
        wait_for(searched(run, 10), process)
        before = rows(run)
        for name in ("ledger", "policies", "tune"):
            (run / name).rename(run / f"{name}-away")
            (run / name).touch()
        time.sleep(3.0)
        for name in ("ledger", "policies", "tune"):
            (run / name).unlink()
            (run / f"{name}-away").rename(run / name)
        wait_for(searched(run, len(before) + 3), process)
        make_room = fill()
        errors = finish(process, 2)
        assert "No space left on device" in errors.splitlines()[-1]
        assert errors.splitlines()[-1].startswith("joulecut: error: ")
        assert "Traceback" not in errors
        before = rows(run)
        make_room()
        check_resumed(environment, run, before)


@contextmanager
def three_nodes(**resources: int) -> Iterator[Cluster]:
    """A head without room for work and two workers with one CPU and ``resources``."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    options: dict[str, Any] = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "_system_config": QUICK_HEALTH_CHECKS, **options},
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **resources, **options)
        yield cluster
    finally:
        cluster.shutdown()


def node_of(cluster: Cluster, process: int) -> Any:
    """The simulated machine that a process belongs to."""
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    while process not in nodes:
        status = Path(f"/proc/{process}/status").read_text()
        process = int(status.partition("PPid:")[2].split()[0])
    return nodes[process]


def trainer(run: Path) -> int:
    """Process of the only trial."""
    (log,) = (run / "log").glob("seed-0-*.jsonl")
    return int(json.loads(log.read_text().splitlines()[0])["pid"])


@pytest.mark.parametrize("stage", ["evaluation", "training", "verification"])
def test_a_killed_node(environment: dict[str, str], tmp_path: Path, stage: str) -> None:
    """The trainer has a machine, evaluators have the other, or two of them and one beside it."""
    is_training = stage == "training"
    budget = 16 if is_training else BUDGET
    with three_nodes() as cluster:
        process = search(
            {**environment, "JOULECUT_TEST_SECONDS": "0" if is_training else "0.5"},
            tmp_path,
            address=cluster.address,
            evaluators=3,
            evaluator_cpus=0.4,
            num_cpus=None,
            algorithm="ppo" if is_training else "random",
            budget=budget,
        )
        run = tmp_path / "run"
        if stage == "verification":
            wait_for(lambda: bool((rows(run)["split"] == "test").any()), process)
            node = cluster.worker_nodes.copy().pop()
        else:
            wait_for(searched(run, 12), process)
            own = node_of(cluster, trainer(run))
            others = cluster.worker_nodes - {own}
            node = own if is_training else others.pop()
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        cluster.remove_node(node, allow_graceful=False)
        finish(process)
    check_whole(run, budget)


@pytest.mark.timeout(3600)
def test_a_batch_on_a_cluster_that_changes(environment: dict[str, str], tmp_path: Path) -> None:
    """A node dies and another comes."""
    specification = {
        "output": str(tmp_path / "batch"),
        "spec": {"budget": 18},
        "experiments": [
            {
                "grid": {
                    "task": [TASK],
                    "accelerator": ["eyeriss-like", "nvdla-small"],
                    "algorithm": ["random", "dp"],
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
    path = tmp_path / "batch.yaml"
    path.write_text(json.dumps(specification))
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20}
    with three_nodes(num_gpus=1) as cluster:
        process = joulecut(environment, "batch", path, "--address", cluster.address)

        def completed(count: int) -> bool:
            states = tmp_path.glob("batch/experiments/*/state.json")
            return sum('"completed"' in state.read_text() for state in states) >= count

        wait_for(lambda: completed(1), process, 600)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        cluster.add_node(**options)
        finish(process, timeout=3000)
    found = status(environment, tmp_path / "batch")
    assert found["counts"] == {"completed": 4}
    assert found["budget"] == 4 * 18
    for entry in found["experiments"]:  # on so small a network dp runs out of allocations
        assert entry["evaluations"] == 18 or "_dp_" in entry["name"]
    assert found["utilization"] is None or 0 <= found["utilization"] <= 1
    runs = list((tmp_path / "batch" / "experiments").iterdir())
    tables = [rows(run) for run in runs]
    assert not any(table.duplicated(["config_hash", "split"]).any() for table in tables)
    measured = pd.concat(tables)  # each configuration once, for both accelerators
    shared = measured[measured["role"] == "baseline"].groupby(["config_hash", "split"])
    assert (shared["accuracy"].nunique() == 1).all()
