"""Algorithms at equal numbers of evaluations: known curves, means and intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from ledger_rows import ROW
from ledger_rows import baselines
from ledger_rows import evaluation
from test_spec import spec

from hwmodel import InputError
from search.cli import main
from search.comparison import cases
from search.comparison import curves
from search.comparison import summary
from search.front import hypervolume
from search.run_directory import RunDirectory


def make_run(
    path: Path, algorithm: str, ratios: dict[int, list[float]], **settings: object
) -> RunDirectory:
    """A run whose seeds measured configurations of these energies, none of which loses anything."""
    settings |= {"algorithm": algorithm, "seeds": sorted(ratios), "targets": [1.0], "budget": 100}
    run = RunDirectory.create(path, spec(**settings))
    rows = [*baselines(), *baselines("test")]
    number = 0
    for position in range(max(map(len, ratios.values()))):
        for seed, energies in ratios.items():
            if position < len(energies):
                number += 1
                rows.append(
                    evaluation(
                        number + 100 * (algorithm == "ppo"),
                        seed=seed,
                        algorithm=algorithm,
                        energy_pj=energies[position] * 80e6,
                    )
                )
    run.ledger.append(rows)
    return run


def test_curves_begin_at_the_baselines_and_follow_every_seed(tmp_path: Path) -> None:
    table = curves([make_run(tmp_path / "run", "ppo", {0: [0.9, 0.5], 3: [0.4]})])
    by_seed = {seed: group for seed, group in table.groupby("seed")}
    assert by_seed[0]["evaluations"].tolist() == [0, 1, 2]
    assert by_seed[0]["ratio_at_1"].tolist() == pytest.approx([1.0, 0.9, 0.5])
    assert by_seed[3]["ratio_at_1"].tolist() == pytest.approx([1.0, 0.4])
    given = [(row.energy_pj / 80e6, 90 - 100 * (row.accuracy or 0)) for row in baselines()]
    expected = hypervolume(*zip(*[*given, (0.4, 0.0)], strict=True))
    assert by_seed[3]["hypervolume"].iloc[-1] == pytest.approx(expected)


def test_a_baseline_that_failed_before_it_was_measured_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "ppo", {0: [0.9]})
    expected = curves([run])
    failed = [
        evaluation(0, config_hash=row.config_hash, name=row.name, role="baseline", seed=-1)
        for row in baselines()
    ]
    before = {"accuracy": None, "error": "it hung", "time": ROW.time - timedelta(days=1)}
    run.ledger.append([replace(row, **before) for row in failed])
    pd.testing.assert_frame_equal(curves([run]), expected)


def test_limits_make_another_algorithm_and_what_exceeds_them_adds_nothing(tmp_path: Path) -> None:
    # All rows, baselines too, have 40 kB.
    free = make_run(tmp_path / "free", "ppo", {0: [0.9]})
    wide = make_run(tmp_path / "wide", "ppo", {0: [0.9]}, limits={"model_bytes": 50_000})
    tight = make_run(tmp_path / "tight", "ppo", {0: [0.9]}, limits={"model_bytes": 30_000})
    overview = summary(curves([free, wide, tight]), [free, wide, tight]).set_index("algorithm")
    assert overview["ratio_at_1"]["ppo, model_bytes <= 50000"] == overview["ratio_at_1"]["ppo"]
    assert overview["hypervolume"]["ppo, model_bytes <= 30000"] == 0


def test_runs_that_minimize_other_costs_are_not_compared(tmp_path: Path) -> None:
    # All rows that are found have the cycles of dense INT8.
    energy = make_run(tmp_path / "energy", "ppo", {0: [0.4]})
    latency = make_run(tmp_path / "latency", "ppo", {0: [0.4]}, preference={"latency_cycles": 1})
    table = curves([energy, latency])
    overview = summary(table, [energy, latency]).set_index("minimized")
    assert overview["algorithm"].tolist() == ["ppo", "ppo"]
    assert overview["ratio_at_1"].to_dict() == pytest.approx(
        {"energy_pj": 0.4, "latency_cycles": 1.0}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"level": "fine"},
        {"task": {"name": "digits", "data": "/elsewhere"}},
        {"task": {"name": "digits", "weights": "/other.safetensors"}},
        {"space": {"weight_bits": [8]}},
        {"robustness": {"attack": "fgsm", "epsilon": 0.01}},
    ],
)
def test_runs_that_are_asked_something_else_are_not_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, object]
) -> None:
    one = make_run(tmp_path / "one", "ppo", {0: [0.4]})
    two = make_run(tmp_path / "two", "ppo", {0: [0.8]}, **other)
    overview = summary(curves([one, two]), [one, two])
    assert overview["ratio_at_1"].tolist() == pytest.approx([0.4, 0.8])
    names = [title for title, _ in cases(overview)]
    assert len(set(names)) == 2
    assert main(["benchmark", one.location, two.location, "--output", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # a title is wrapped
    assert all(f"{name}: 1 evaluations a seed" in shown for name in names)


def test_what_is_the_same_in_all_cases_is_not_shown(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", "ppo", {0: [0.4]}, level="fine")
    two = make_run(tmp_path / "two", "ppo", {0: [0.4]}, task="cifar10-resnet20", level="fine")
    assert [title for title, _ in cases(curves([one, two]))] == [
        "digits, eyeriss-like, energy_pj",
        "cifar10-resnet20, eyeriss-like, energy_pj",
    ]


def test_a_run_that_is_named_twice_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_run(tmp_path / "run", "ppo", {0: [0.8], 1: [0.6]}).location
    names = [place, f"{place}/", f"file://{place}"]
    assert main(["benchmark", *names, "--output", str(tmp_path / "out"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["summary"]
    assert (row["seeds"], row["hypervolume_seeds"]) == (2, 2)


def test_a_warm_start_is_not_averaged_with_a_cold_one(tmp_path: Path) -> None:
    cold = make_run(tmp_path / "cold", "ppo", {0: [0.9]})
    warm = make_run(tmp_path / "warm", "ppo", {0: [0.4]}, init_from=str(tmp_path / "cold"))
    overview = summary(curves([cold, warm]), [cold, warm]).set_index("algorithm")
    assert overview["ratio_at_1"].to_dict() == pytest.approx({"ppo": 0.9, "ppo (warm)": 0.4})


def test_policies_of_other_settings_are_another_algorithm(tmp_path: Path) -> None:
    usual = make_run(tmp_path / "usual", "ppo", {0: [0.9]})
    policies = {"hidden": [8], "learning_rate": 0.01}
    small = make_run(tmp_path / "small", "ppo", {0: [0.4]}, policies=policies)
    table = curves([usual, small])
    assert set(table["algorithm"]) == {"ppo", "ppo, hidden [8], learning_rate 0.01"}


def test_policies_that_learnt_from_another_accuracy_are_another_algorithm(tmp_path: Path) -> None:
    predicted = make_run(tmp_path / "predicted", "ppo", {0: [0.4]})
    measured = make_run(tmp_path / "measured", "ppo", {0: [0.9]}, accuracy="measured")
    table = curves([predicted, measured])
    assert set(table["algorithm"]) == {"ppo", "ppo (measured)"}


def test_the_summary_compares_after_as_many_evaluations_as_all_have(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "ppo", "ppo", {0: [0.6, 0.5, 0.1], 1: [0.7, 0.7]}),
        make_run(tmp_path / "random", "random", {0: [0.8, 0.8]}),
    ]
    overview = summary(curves(runs), runs).set_index("algorithm")
    assert overview["evaluations"].tolist() == [2, 2]
    assert overview["seeds"].to_dict() == {"ppo": 2, "random": 1}
    assert overview.loc["ppo", "ratio_at_1"] == pytest.approx(0.6)  # the third one is not counted
    assert overview.loc["ppo", "ratio_at_1_low"] == pytest.approx(0.5)
    assert overview.loc["ppo", "ratio_at_1_high"] == pytest.approx(0.7)
    assert pd.isna(overview.loc["random", "ratio_at_1_low"])
    assert overview.loc["random", "ratio_at_1"] == pytest.approx(0.8)


def test_picks_report_what_they_lose_on_the_test_split(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "ppo", {0: [0.5], 1: [0.6]})
    cheapest = run.ledger.read().sort_values("energy_pj").iloc[0]
    test = evaluation(0, config_hash=cheapest["config_hash"], split="test", accuracy=0.88)
    run.ledger.append([test])
    overview = summary(curves([run]), [run]).iloc[0]
    assert overview["pick_ratio_at_1"] == pytest.approx(0.55)
    # Seed 1's pick was not verified.
    assert (overview["pick_ratio_at_1_seeds"], overview["pick_test_drop_at_1_seeds"]) == (2, 1)
    assert overview["pick_test_drop_at_1"] == pytest.approx(2.0)
    assert overview["pick_optimism_at_1"] == pytest.approx(2.0)


def test_the_command_writes_tables_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        str(make_run(tmp_path / name, name, {0: [0.8, 0.5], 1: [0.7, 0.6]}).location)
        for name in ("ppo", "random")
    ]
    assert main(["benchmark", *runs, "--output", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["algorithm"] for row in found["summary"]] == ["ppo", "random"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("curves.csv", "curves.parquet", "summary.csv", "summary.parquet", "curves-0.png"),
    }
    assert main(["benchmark", *runs, "--output", str(tmp_path / "out")]) == 0
    assert "2 evaluations a seed" in capsys.readouterr().out


def test_an_accelerator_is_named_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "/chips/[/new]/[red].yaml"
    run = make_run(tmp_path / "run", "ppo", {0: [0.5]}, accelerator=name)
    assert main(["benchmark", run.location, "--output", str(tmp_path / "out")]) == 0
    assert name in capsys.readouterr().out


def test_what_holds_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    empty = RunDirectory.create(tmp_path / "empty", spec())
    with pytest.raises(InputError, match="benchmark"):
        curves([empty])
