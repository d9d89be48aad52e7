"""Whole searches through the command line, on real digits."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from faulty_task import __file__ as TASK_FILE

from search.checkpoints import CHECKPOINT

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
BASELINES = 6
MOST_BYTES = 20_000
"""Model size that the search is given as a limit: dense INT8 has 34 kB."""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "search.cli", *map(str, arguments)]


def joulecut(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **environment},
        cwd=ROOT,
        check=False,
    )


def read_json(*arguments: str | Path) -> dict[str, Any]:
    result = joulecut(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def write_spec(folder: Path, **changes: Any) -> Path:
    spec = {
        "task": "digits",
        "accelerator": "eyeriss-like",
        "output": str(folder / "run"),
        "seeds": [0, 1],
        "budget": 26,
        "resources": {"num_cpus": 2},
        **changes,
    }
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec))  # YAML holds all of JSON
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    # Policies take longer to train than all else together; the slow tests search with them.
    attack = {"attack": "fgsm", "epsilon": 0.1, "images": 200}
    limits = {"model_bytes": MOST_BYTES}
    changes = {"budget": 18, "algorithm": "dp+fitted", "robustness": attack, "limits": limits}
    result = joulecut("search", write_spec(folder, **changes))
    assert result.returncode == 0, result.stderr
    assert all(text in result.stdout for text in ("dense INT8", "best at 1", "attacked %"))
    return folder / "run"


def test_a_search_spends_its_budget_on_distinct_configurations(run: Path) -> None:
    rows = pd.read_parquet(run / "ledger")
    searched = rows[rows["split"] == "search"]
    assert len(searched) == searched["config_hash"].nunique() == 18
    assert (searched["role"] == "baseline").sum() == BASELINES
    assert searched[searched["role"] == "search"]["seed"].value_counts().to_dict() == {0: 6, 1: 6}
    assert set(rows["split"]) == {"search", "test", "recalibrated"}
    assert not rows.duplicated(["config_hash", "split"]).any()
    status = read_json("status", run)
    assert (status["state"], status["evaluations"], status["budget"]) == ("completed", 18, 18)


def test_the_report_has_baselines_and_verified_picks(run: Path) -> None:
    report = read_json("report", run)
    int8 = next(entry for entry in report["baselines"] if entry["name"] == "dense INT8")
    assert int8["energy_ratio_int8"] == 1.0
    assert report["evaluations"] == 18
    for entry in report["best"]:
        assert entry["verified"]
        assert entry["energy_pj"] <= int8["energy_pj"]
        assert entry["search_accuracy_drop"] <= entry["max_accuracy_drop"]
    again = pd.read_parquet(run / "ledger").query("split == 'recalibrated'")
    again = again.set_index("config_hash")["accuracy"]
    picked = {entry["config_hash"]: entry["recalibrated_accuracy"] for entry in report["best"]}
    assert picked == again.to_dict()
    assert report["limits"] == {"model_bytes": MOST_BYTES}
    assert all(entry["model_bytes"] <= MOST_BYTES for entry in report["best"] + report["front"])
    assert (run / "report" / "report.html").stat().st_size > 10_000


def test_what_a_search_proposes_has_an_expected_loss(run: Path) -> None:
    rows = pd.read_parquet(run / "ledger")
    proposed = (rows["role"] == "search") & (rows["split"] == "search")
    assert rows[proposed]["predicted_drop"].between(0, 100).all()
    assert rows[~proposed]["predicted_drop"].isna().all()


def test_what_a_search_proposes_holds_its_limits(run: Path) -> None:
    rows = pd.read_parquet(run / "ledger")
    assert rows[rows["role"] == "search"]["model_bytes"].max() <= MOST_BYTES


def test_a_limit_that_nothing_holds_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    result = joulecut("search", write_spec(tmp_path, limits={"bops": 1000}))
    assert result.returncode == 2
    assert "limits.bops: 1000.0 is not allowed" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_every_evaluation_was_attacked(run: Path) -> None:
    rows = pd.read_parquet(run / "ledger")
    assert rows["robust_accuracy"].between(0, 1).all()
    assert rows["robust_accuracy"].mean() < rows["accuracy"].mean()
    assert all(entry["robust_accuracy"] is not None for entry in read_json("report", run)["best"])


def test_the_log_has_every_evaluation_and_tensorboard_every_seed(run: Path) -> None:
    lines = [line for file in (run / "log").iterdir() for line in file.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    logged = {(e["config_hash"], e["split"]) for e in events if e["event"] == "evaluation"}
    rows = pd.read_parquet(run / "ledger")
    assert logged == set(zip(rows["config_hash"], rows["split"], strict=True))
    assert {e["run"] for e in events} == {str(run)}
    assert {e["trial"] for e in events if e["event"] == "round"} == {"seed-0", "seed-1"}
    best = {
        e["max_accuracy_drop"]: e["energy_ratio_int8"] for e in read_json("status", run)["best"]
    }
    for target, ratio in best.items():
        name = f"best_cost_ratio/{target:g}"
        assert min(e[name] for e in events if name in e) == pytest.approx(ratio)
    for seed in (0, 1):
        assert list((run / "tensorboard" / f"seed-{seed}").glob("events.out.tfevents.*"))


def test_resuming_a_finished_run_evaluates_nothing(run: Path) -> None:
    before = pd.read_parquet(run / "ledger")
    assert joulecut("resume", run).returncode == 0
    assert len(pd.read_parquet(run / "ledger")) == len(before)


def test_export_and_evaluate_agree_with_the_ledger(run: Path, tmp_path: Path) -> None:
    result = joulecut("export", run, "--max-accuracy-drop", "2", "--output", tmp_path / "net")
    assert result.returncode == 0, result.stderr
    config = tmp_path / "net" / "config.json"
    measured = read_json("evaluate", "--task", "digits", "--config", config, "--split", "test")
    rows = pd.read_parquet(run / "ledger")
    row = rows[(rows["config_hash"] == measured["config_hash"]) & (rows["split"] == "test")]
    assert measured["accuracy"] == pytest.approx(row["accuracy"].item())
    assert measured["energy_pj"] == pytest.approx(row["energy_pj"].item())
    arguments = ("--config", config, "--split", "test", "--calibration-seed", "1")
    again = read_json("evaluate", "--task", "digits", *arguments)
    row = rows[(rows["config_hash"] == again["config_hash"]) & (rows["split"] == "recalibrated")]
    assert again["accuracy"] == pytest.approx(row["accuracy"].item())
    assert again["energy_pj"] == pytest.approx(row["energy_pj"].item())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "appo"])
def test_one_evaluator_gives_the_same_ledger_of_fine_prices_twice(
    algorithm: str, tmp_path: Path
) -> None:
    changes = {
        "task": f"{TASK_FILE}:task",
        "algorithm": algorithm,
        "level": "fine",
        "seeds": [3],
        "budget": 18,
        "resources": {"num_cpus": 2, "evaluators": 1},
    }
    found = []
    for hash_seed in ("0", "4"):  # sets of the agents' names have different orders
        folder = tmp_path / hash_seed
        folder.mkdir()
        spec = write_spec(folder, **changes)
        assert joulecut("search", spec, PYTHONHASHSEED=hash_seed).returncode == 0
        rows = pd.read_parquet(folder / "run" / "ledger").sort_values("time", ignore_index=True)
        found.append(rows.drop(columns=["time", "seconds"]))
    searched, tested = (
        [rows[rows["split"] == split].reset_index(drop=True) for rows in found]
        for split in ("search", "test")
    )
    pd.testing.assert_frame_equal(*searched, check_exact=True)  # in the same order, too
    by_hash = [rows.sort_values("config_hash", ignore_index=True) for rows in tested]
    pd.testing.assert_frame_equal(*by_hash, check_exact=True)

    row = rows[rows["role"] == "search"].iloc[0]
    (tmp_path / "config.json").write_text(row["config"])
    arguments = ("--task", changes["task"], "--accelerator", "eyeriss-like", "--level", "fine")
    priced = read_json("cost", *arguments, "--config", tmp_path / "config.json")
    assert priced["total"]["energy"] == pytest.approx(row["energy_pj"])


@pytest.mark.slow
def test_a_search_minimizes_what_is_preferred(tmp_path: Path) -> None:
    preference = {"energy_pj": 1, "model_bytes": 3}
    spec = write_spec(tmp_path, algorithm="dp+fitted", seeds=[0], budget=24, preference=preference)
    result = joulecut("search", spec)
    assert result.returncode == 0, result.stderr
    assert "0.25 energy_pj + 0.75 model_bytes" in result.stdout
    report = read_json("report", tmp_path / "run")
    assert report["preference"] == {"energy_pj": 0.25, "model_bytes": 0.75}
    int8 = next(entry for entry in report["baselines"] if entry["name"] == "dense INT8")
    assert int8["cost_ratio_int8"] == 1
    for entry in [*report["front"], *report["best"]]:
        smaller = entry["model_bytes"] / int8["model_bytes"]
        expected = 0.25 * entry["energy_ratio_int8"] + 0.75 * smaller
        assert entry["cost_ratio_int8"] == pytest.approx(expected)
    costs = [entry["cost_ratio_int8"] for entry in report["front"]]
    assert costs == sorted(costs)
    assert min(costs) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["composite", "ppo-rounds", "appo"])
def test_the_other_agents_search_and_are_kept(algorithm: str, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, algorithm=algorithm, seeds=[0], budget=16)
    assert joulecut("search", spec).returncode == 0
    rows = pd.read_parquet(tmp_path / "run" / "ledger")
    searched = rows[rows["role"] == "search"]
    assert len(searched) == 16 - BASELINES
    assert set(searched["algorithm"]) == {algorithm}
    dense = rows[(rows["split"] == "search") & (rows["role"] == "baseline")]
    assert searched["energy_pj"].min() < dense["energy_pj"].min()
    state = torch.load(tmp_path / "run" / "policies" / "seed-0" / CHECKPOINT, weights_only=True)
    assert algorithm != "composite" or len(state["replay"]["targets"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "composite"])
def test_policies_search_by_true_evaluations_alone_and_others_start_from_them(
    algorithm: str, tmp_path: Path
) -> None:
    changes = {"task": f"{TASK_FILE}:task", "algorithm": algorithm, "accuracy": "measured"}
    spec = write_spec(tmp_path, **changes)
    result = joulecut("search", spec)
    assert result.returncode == 0, result.stderr
    rows = pd.read_parquet(tmp_path / "run" / "ledger")
    searched = rows[rows["split"] == "search"]
    assert len(searched) == searched["config_hash"].nunique() == 26
    assert set(rows[rows["role"] == "search"]["algorithm"]) == {algorithm}
    for seed in (0, 1):
        folder = tmp_path / "run" / "policies" / f"seed-{seed}"
        state = torch.load(folder / CHECKPOINT, weights_only=True)
        assert algorithm != "composite" or len(state["replay"]["rewards"]) >= 10
    assert joulecut("resume", tmp_path / "run").returncode == 0
    assert len(pd.read_parquet(tmp_path / "run" / "ledger")) == len(rows)
    flags = ("--init-from", tmp_path / "run", "--budget", "16", "--output", tmp_path / "warm")
    result = joulecut("search", spec, *flags)
    assert result.returncode == 0, result.stderr


def evaluations(run: Path) -> int:
    """Rows of the ledger on the search split so far."""
    parts = list((run / "ledger").glob("part-*.parquet"))
    return sum((pd.read_parquet(part)["split"] == "search").sum() for part in parts)


def start_and_stop(folder: Path, stop: signal.Signals, after: int) -> Path:
    """Start a search and stop it with a signal once the ledger has ``after`` rows."""
    driver = subprocess.Popen(
        command("search", write_spec(folder, seeds=[0])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd=ROOT,
        # A shell that runs the tests in the background ignores SIGINT, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and driver.poll() is None:
        if evaluations(folder / "run") >= after:
            break
        time.sleep(0.2)
    driver.send_signal(stop)
    driver.communicate(timeout=120)
    assert driver.returncode != 0
    return folder / "run"


@pytest.mark.slow
def test_a_search_stopped_by_ctrl_c_is_resumed_without_repeating_anything(tmp_path: Path) -> None:
    run = start_and_stop(tmp_path, signal.SIGINT, after=14)
    before = pd.read_parquet(run / "ledger")
    assert read_json("status", run)["state"] == "interrupted"
    assert BASELINES < evaluations(run) < 26
    assert joulecut("report", run).returncode == 0
    result = joulecut("resume", run)
    assert result.returncode == 0, result.stderr
    rows = pd.read_parquet(run / "ledger")
    assert not rows.duplicated(["config_hash", "split"]).any()
    assert (rows["split"] == "search").sum() == 26
    assert set(before["config_hash"]) <= set(rows["config_hash"])
    assert read_json("status", run)["state"] == "completed"


@pytest.mark.slow
def test_a_spent_time_budget_leaves_a_whole_run_that_can_go_on(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, time_budget="25s", budget=5000, algorithm="dp+fitted")
    result = joulecut("search", spec)
    assert result.returncode == 0, result.stderr
    status = read_json("status", tmp_path / "run")
    assert BASELINES <= status["evaluations"] < 5000
    assert (status["state"], status["message"]) == (
        "completed",
        "25s of search are spent; resume goes on",
    )
    assert all(entry["verified"] for entry in read_json("report", tmp_path / "run")["best"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_search_of_the_readme_runs_and_keeps_its_promise(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- search -->\n+```bash\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    (line,) = [line for line in block[1].splitlines() if line.startswith("joulecut ")]
    arguments = shlex.split(line)[1:]
    result = subprocess.run(
        command(*arguments), cwd=tmp_path, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert result.returncode == 0
    report = read_json("report", tmp_path / arguments[arguments.index("--output") + 1])
    best = next(entry for entry in report["best"] if entry["max_accuracy_drop"] == 1.0)
    assert best["verified"]
    assert best["energy_ratio_int8"] <= 0.60
