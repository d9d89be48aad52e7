"""Searches on simulated machines that lose processes, machines, files and patience, and go on."""

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


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What evaluations do, see ``faulty_task``; known to whatever the module starts."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv(FAULTS, str(folder))
        yield folder


@pytest.fixture(autouse=True)
def clean(faults: Path) -> Iterator[None]:
    """No faults at the start of a test; what it started and left is killed at its end."""
    for file in faults.iterdir():
        file.unlink()
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def joulecut(*arguments: str | Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "search.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    _started.append(process)
    return process


def search(
    cluster: Cluster,
    folder: Path,
    *,
    algorithm: str = "random",
    budget: int = BUDGET,
    evaluators: int = 2,
    **resources: Any,
) -> subprocess.Popen[str]:
    spec = {
        "task": TASK,
        "accelerator": "eyeriss-like",
        "output": str(folder / "run"),
        "algorithm": algorithm,
        "budget": budget,
        "resources": {
            "address": cluster.address,
            "evaluators": evaluators,
            "evaluator_cpus": 0.4,
            **resources,
        },
    }
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec))
    return joulecut("search", path)


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


def written(run: Path, count: int, split: str = "search") -> Callable[[], bool]:
    return lambda: int((rows(run)["split"] == split).sum()) >= count


def status(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(joulecut("status", run, "--json").communicate()[0])
    return document


def check_whole(run: Path, budget: int = BUDGET) -> pd.DataFrame:
    """The budget is spent, on distinct configurations, and what matters is verified."""
    found = rows(run)
    twice = found[found.duplicated(["config_hash", "split"], keep=False)]
    assert twice.empty, twice[["config_hash", "split", "role", "accuracy", "time"]].to_string()
    assert (found["split"] == "search").sum() == budget
    assert (found["split"] == "test").sum() >= BASELINES
    assert json.loads((run / "state.json").read_text())["state"] == "completed"
    return found


def check_kept(before: pd.DataFrame, after: pd.DataFrame) -> None:
    kept = before.merge(after, on=["config_hash", "split", "time"])
    assert len(kept) == len(before)


@contextmanager
def three_nodes(**resources: int) -> Iterator[Cluster]:
    """A head without room for work and two workers with one CPU and ``resources``."""
    options: dict[str, Any] = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "_system_config": QUICK_HEALTH_CHECKS,
            **options,
        },
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **resources, **options)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(faults: Path) -> Iterator[Cluster]:
    """For tests that leave its machines alone."""
    with three_nodes() as machines:
        yield machines


@pytest.mark.timeout(3600)
def test_a_driver_that_is_killed_again_and_again(
    cluster: Cluster, faults: Path, tmp_path: Path
) -> None:
    """By turns at work and while it starts; the last time at work on the test split."""
    chance = random.Random(0)
    (faults / "seconds").write_text("0.5")
    run, budget, before = tmp_path / "run", BUDGET + 3 * KILLS, rows(tmp_path)
    process = search(cluster, tmp_path, budget=budget)
    for number in range(KILLS):
        is_last = number == KILLS - 1
        is_starting = number % 2 == 1 and not is_last
        if is_last:
            wait_for(written(run, 1, "test"), process)
        elif not is_starting:
            count = len(before) + chance.randint(1, 3)
            wait_for(lambda count=count: len(rows(run)) >= count, process)
        time.sleep(chance.uniform(0.0, 8.0 if is_starting else 0.5))
        process.kill()
        finish(process, -signal.SIGKILL)
        before = rows(run)
        process = joulecut("resume", run)
    finish(process)
    check_kept(before, check_whole(run, budget))


def test_a_driver_told_to_end_and_torn_files_of_the_ledger(
    cluster: Cluster, faults: Path, tmp_path: Path
) -> None:
    (faults / "seconds").write_text("0.3")
    run = tmp_path / "run"
    process = search(cluster, tmp_path)
    wait_for(written(run, 10), process)
    process.terminate()
    assert "stopped; go on with: joulecut resume" in finish(process)
    found = status(run)
    assert (found["state"], found["message"]) == ("interrupted", "stopped by SIGTERM")
    assert (run / "report" / "report.html").exists()

    first, second, third, *others = sorted((run / "ledger").glob("part-*.parquet"))
    before = pd.concat([pd.read_parquet(part) for part in others])
    first.write_bytes(first.read_bytes()[:-20])
    second.write_bytes(b"")
    content = bytearray(third.read_bytes())
    content[len(content) // 3] ^= 0xFF
    third.write_bytes(content)
    assert "joulecut resume will put it aside" in finish(joulecut("report", run), 2)

    errors = finish(joulecut("resume", run))
    for part in (first, second, third):
        assert f"damaged ledger file moved to {run}/damaged/{part.name}" in errors
        assert (run / "damaged" / part.name).exists()
    check_kept(before, check_whole(run))


def test_evaluations_that_die_hang_raise_and_return_nan(
    cluster: Cluster, faults: Path, tmp_path: Path
) -> None:
    """On the search split, and one that hangs on the test split."""
    (faults / "seconds").write_text("0.3")
    run = tmp_path / "run"
    process = search(cluster, tmp_path, evaluators=1, evaluation_timeout="8s")
    wait_for(written(run, BASELINES), process)
    for fault in ("1 dies", "2 hangs", "3 hangs", "4 hangs", "5 raises", "6 is not a number"):
        (faults / f"{fault}.fault").touch()
    wait_for(written(run, BUDGET), process)
    assert list(faults.glob("*.fault")) == []
    (faults / "hangs.fault").touch()
    finish(process)
    assert list(faults.glob("*.fault")) == []
    found = check_whole(run)
    failed = found[found["accuracy"].isna()].sort_values("time")
    reasons = ("no result in 8 s, 2 times", "no images left", "nan is not allowed")
    for error, reason in zip(failed["error"], reasons, strict=True):
        assert reason in error


def test_a_baseline_that_fails_is_measured_again(
    cluster: Cluster, faults: Path, tmp_path: Path
) -> None:
    """A search cannot do without: it ends, and says why."""
    (faults / "raises.fault").touch()
    run = tmp_path / "run"
    errors = finish(search(cluster, tmp_path), 2)
    assert errors.splitlines()[-1].startswith("joulecut: error: evaluation of dense FP32")
    assert "no images left" in errors and "Traceback" not in errors
    finish(joulecut("resume", run))
    found = rows(run)
    assert found["accuracy"].isna().sum() == 1
    known = found[found["accuracy"].notna()]
    assert not known.duplicated(["config_hash", "split"]).any()
    assert (known["split"] == "search").sum() == BUDGET


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


def test_storage_that_refuses_writes(cluster: Cluster, faults: Path, tmp_path: Path) -> None:
    """For a while: a file where the folder should be refuses everyone. Then the disk is full."""
    with small_disk(tmp_path / "disk") as fill:
        (faults / "seconds").write_text("0.3")
        process = search(cluster, tmp_path / "disk")
        run = tmp_path / "disk" / "run"
        wait_for(written(run, 10), process)
        before = rows(run)
        for name in ("ledger", "policies", "tune"):
            (run / name).rename(run / f"{name}-away")
            (run / name).touch()
        time.sleep(3.0)
        for name in ("ledger", "policies", "tune"):
            (run / name).unlink()
            (run / f"{name}-away").rename(run / name)
        wait_for(written(run, len(before) + 3), process)
        make_room = fill()
        errors = finish(process, 2)
        assert "No space left on device" in errors.splitlines()[-1]
        assert errors.splitlines()[-1].startswith("joulecut: error: ")
        assert "Traceback" not in errors
        before = rows(run)
        make_room()
        finish(joulecut("resume", run))
        check_kept(before, check_whole(run))


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
def test_a_killed_node(faults: Path, tmp_path: Path, stage: str) -> None:
    """The trainer has a machine, evaluators have the other, or two of them and one beside it."""
    is_training = stage == "training"
    budget = 16 if is_training else BUDGET
    (faults / "seconds").write_text("0" if is_training else "0.5")
    with three_nodes() as machines:
        algorithm = "ppo" if is_training else "random"
        process = search(machines, tmp_path, algorithm=algorithm, budget=budget, evaluators=3)
        run = tmp_path / "run"
        if stage == "verification":
            wait_for(lambda: bool((rows(run)["split"] == "test").any()), process)
            node = machines.worker_nodes.copy().pop()
        else:
            wait_for(written(run, 12), process)
            own = node_of(machines, trainer(run))
            others = machines.worker_nodes - {own}
            node = own if is_training else others.pop()
        machines.remove_node(node, allow_graceful=False)
        machines.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        finish(process)
    check_whole(run, budget)


@pytest.mark.timeout(3600)
def test_a_batch_on_a_cluster_that_changes(faults: Path, tmp_path: Path) -> None:
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
    with three_nodes(num_gpus=1) as machines:
        process = joulecut("batch", path, "--address", machines.address)

        def completed(count: int) -> bool:
            states = tmp_path.glob("batch/experiments/*/state.json")
            return sum('"completed"' in state.read_text() for state in states) >= count

        wait_for(lambda: completed(1), process, 600)
        machines.remove_node(machines.worker_nodes.copy().pop(), allow_graceful=False)
        machines.add_node(**options)
        told = finish(process, timeout=3000)
    assert told.count(": completed; ") == 4
    assert told.count(": started") >= 4
    found = status(tmp_path / "batch")
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
