from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from ledger_rows import ROW
from ledger_rows import baselines
from ledger_rows import evaluation
from test_spec import spec

from hwmodel.errors import InputError
from search import figures
from search.baselines import BASELINES
from search.report import build_report
from search.report_files import write_report
from search.run_directory import RunDirectory
from search.table import cells
from search.table import headers
from search.table import notes
from search.table import scaled


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """INT8 costs 80 µJ. Configuration 1 holds 0.5 points, 2 holds 2 points and is verified."""
    run = RunDirectory.create(tmp_path / "run", spec())
    run.ledger.append([*baselines(), *baselines("test")])
    run.ledger.append(
        [
            evaluation(1, accuracy=0.9, energy_pj=40e6),
            evaluation(2, accuracy=0.89, energy_pj=20e6),
            evaluation(3, accuracy=0.8, energy_pj=60e6),
            evaluation(2, accuracy=0.888, energy_pj=20e6, split="test", role="finalist"),
        ]
    )
    return run


def write_layers(run: RunDirectory, config_hash: str) -> None:
    pd.DataFrame(
        {
            "layer": ["stem", "a<b>&c"],
            "granularity": ["element", "filter"],
            "criterion": ["l1", "l2"],
            "sparsity": [0.5, 0.25],
            "weight_bits": [8, 4],
            "activation_bits": [8, 5],
            "energy_pj": [1e6, 2e6],
        }
    ).to_parquet(f"{run.report.location}/layers-{config_hash}.parquet")


def test_baselines_come_in_order_with_both_ratios(run: RunDirectory) -> None:
    baseline_entries = build_report(run).baselines
    assert [entry.name for entry in baseline_entries] == list(BASELINES)
    assert [entry.energy_ratio_int8 for entry in baseline_entries] == [4, 2, 1, 0.75, 0.625, 0.5]
    assert [entry.energy_ratio_fp16 for entry in baseline_entries][:2] == [2, 1]
    assert [entry.accuracy for entry in baseline_entries][:3] == [0.9] * 3
    assert baseline_entries[3].accuracy_drop == pytest.approx(2.0)


def test_best_is_picked_on_the_search_split_and_reported_on_the_test_split(run) -> None:
    best = {item.max_accuracy_drop: item for item in build_report(run).best}

    assert list(best) == [0.5, 1.0, 2.0]
    assert best[0.5].config_hash == f"{1:016x}"
    assert (best[0.5].verified, best[0.5].accuracy, best[0.5].accuracy_drop) == (False, None, None)
    assert best[2.0].config_hash == f"{2:016x}"
    assert best[2.0].verified
    assert best[2.0].accuracy == 0.888
    assert best[2.0].accuracy_drop == pytest.approx(1.2)
    assert best[2.0].search_accuracy_drop == pytest.approx(1.0)
    assert best[2.0].energy_ratio_int8 == 0.25


def test_front_and_hypervolume_are_those_of_the_search_split(run: RunDirectory) -> None:
    report = build_report(run)
    assert [entry.config_hash for entry in report.front] == [f"{n:016x}" for n in (2, 1)]
    # Ratio 0.25 at 1 point lost, 0.5 at none.
    assert report.hypervolume == pytest.approx(0.25 * 0.9 + 0.5)
    assert report.evaluations == 9


def test_a_preference_decides_front_picks_and_hypervolume(tmp_path: Path) -> None:
    """Half the energy at the cycles of dense INT8, or the other way round."""
    preference = {"energy_pj": 1.0, "latency_cycles": 3.0}
    run = RunDirectory.create(tmp_path / "run", spec(preference=preference))
    run.ledger.append([*baselines(), *baselines("test")])
    run.ledger.append(
        [
            evaluation(1, accuracy=0.9, energy_pj=40e6, latency_cycles=1e5),
            evaluation(2, accuracy=0.9, energy_pj=80e6, latency_cycles=0.5e5),
        ]
    )
    report = build_report(run)
    assert [entry.config_hash for entry in report.front] == [f"{2:016x}"]
    assert {item.config_hash for item in report.best} == {f"{2:016x}"}
    best = report.best[0]
    assert (best.energy_ratio_int8, best.cost_ratio_int8) == (1.0, 0.25 + 0.75 * 0.5)
    assert report.hypervolume == pytest.approx(1 - 0.625)
    assert report.to_json()["preference"] == {"energy_pj": 0.25, "latency_cycles": 0.75}
    assert dict(zip(headers(report), cells(report, best), strict=True))["cost"] == "0.625"
    assert "0.25 energy_pj + 0.75 latency_cycles" in " ".join(notes(report))
    write_report(run, report)
    assert "cost / dense INT8" in Path(run.location, "report", "report.html").read_text()


def test_energy_is_what_counts_without_a_preference(run: RunDirectory) -> None:
    report = build_report(run)
    for entry in [*report.baselines, *report.best, *report.front]:
        assert entry.cost_ratio_int8 == entry.energy_ratio_int8
    assert "cost" not in headers(report)
    assert report.to_json()["preference"] == {"energy_pj": 1.0}


def test_json_has_the_documented_fields_and_no_numpy(run: RunDirectory) -> None:
    data = json.loads(json.dumps(build_report(run).to_json(), allow_nan=False))
    fields = {
        *("name", "accuracy", "accuracy_drop", "energy_pj", "energy_ratio_int8"),
        *("energy_ratio_fp16", "latency_cycles", "bops", "model_bytes"),
    }
    for entry in [*data["baselines"], *data["best"]]:
        assert fields <= set(entry)
    assert {"max_accuracy_drop", "config_hash", "verified"} <= set(data["best"][0])


def test_a_run_that_has_just_begun_can_be_reported(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", spec())
    report = build_report(run)
    assert (report.evaluations, report.baselines, report.best, report.hypervolume) == (
        0,
        [],
        [],
        None,
    )
    write_report(run, report)
    assert notes(report) == ["No configuration reaches a goal yet."]


def test_without_dense_int8_the_ratio_is_unknown(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", spec())
    run.ledger.append([*baselines()[:2], evaluation(1)])
    report = build_report(run)
    shown = report.baselines[1]
    assert (shown.energy_ratio_int8, shown.cost_ratio_int8) == (None, None)
    assert shown.energy_ratio_fp16 == 1
    assert (report.best, report.unreached) == ([], [])
    write_report(run, report)


def test_a_baseline_without_a_price_is_shown_as_such(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", spec())
    costs = dict.fromkeys(("energy_pj", "latency_cycles", "bops", "model_bytes"), math.nan)
    dense, *others = baselines()
    run.ledger.append([replace(dense, **costs), *others, evaluation(1, energy_pj=40e6)])
    report = build_report(run)
    shown = report.baselines[0]
    assert (shown.energy_pj, shown.energy_ratio_int8, shown.latency_cycles) == (None, None, None)
    assert cells(report, shown)[3:] == ["–"] * 6  # noqa: RUF001 (an en dash is meant)
    assert report.best[-1].energy_ratio_int8 == 0.5
    json.dumps(report.to_json(), allow_nan=False)
    write_report(run, report)


def test_every_table_is_written_as_csv_and_parquet(run: RunDirectory) -> None:
    report = build_report(run)
    files = write_report(run, report)
    folder = Path(run.location, "report")
    assert {Path(file).name for file in files} == {
        "table.csv",
        "table.parquet",
        "front.csv",
        "front.parquet",
        "time.csv",
        "time.parquet",
        "front.png",
        "report.html",
    }
    table = pd.read_csv(folder / "table.csv")
    assert list(table["name"]) == [*BASELINES, "best at 0.5", "best at 1", "best at 2"]
    front = pd.read_parquet(folder / "front.parquet")
    assert list(front["energy_pj"]) == [20e6, 40e6]
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_self_contained_and_shows_the_layers(run: RunDirectory) -> None:
    write_layers(run, f"{2:016x}")
    write_report(run, build_report(run))
    page = Path(run.location, "report", "report.html").read_text()

    assert not re.search(r'(src|href)="(?!#)', page)
    assert not re.search(r"<(script|link|iframe|img)", page)
    assert "a&lt;b&gt;&amp;c" in page
    assert "a<b>" not in page
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 2  # the front, and one pick with a per-layer table
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert page.count("No per-layer table") == 2
    for name in BASELINES:
        assert name in page


def test_every_way_to_prune_is_drawn() -> None:
    names = ["none", "element", "kernel", "filter", "4x1", "1x4", "2x2", "n:4", "n:8", "n:16"]
    removed = [0.0, *(0.05 * number for number in range(1, len(names)))]
    table = pd.DataFrame(
        {
            "layer": [f"layer{number}" for number in range(len(names))],
            "granularity": names,
            "sparsity": removed,
            "weight_bits": 8,
            "activation_bits": 8,
            "energy_pj": 1e6,
        }
    )
    pruned, *_ = figures.layers(table).axes
    assert {bars.get_label() for bars in pruned.containers} == set(names)
    bars = [bar for container in pruned.containers for bar in container]
    drawn = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars}
    assert drawn == pytest.approx({place: 100 * share for place, share in enumerate(removed)})
    assert len({bar.get_facecolor() for bar in bars}) == len(names)


def test_a_damaged_layer_table_is_named(run: RunDirectory) -> None:
    Path(run.location, "report", f"layers-{2:016x}.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="layers-"):
        build_report(run)


def test_notes_tell_what_was_not_verified_and_what_lost_too_much(run: RunDirectory) -> None:
    later = ROW.time + timedelta(hours=1)  # a repetition changes nothing
    run.ledger.append([evaluation(2, accuracy=0.87, split="test", time=later)])
    assert notes(build_report(run)) == [
        "Not yet evaluated on the test split: best at 0.5, best at 1. What they lose on the "
        "search split, joulecut status tells."
    ]
    run.ledger.append([evaluation(1, accuracy=0.88, split="test")])
    assert notes(build_report(run)) == [
        "Loses more on the test split than it is meant to: best at 0.5, best at 1."
    ]


def test_a_loss_as_large_as_the_target_holds_it(run: RunDirectory) -> None:
    report = build_report(run)
    as_large = replace(report.best[0], accuracy_drop=100 * (1 - 0.995), max_accuracy_drop=0.5)
    assert as_large.accuracy_drop > 0.5
    assert not any("more on the test" in each for each in notes(replace(report, best=(as_large,))))


def test_what_picks_lose_from_another_calibration_sample_is_told(run: RunDirectory) -> None:
    before = build_report(run)
    assert all(item.recalibrated_accuracy is None for item in before.best)
    assert not any("calibration" in note for note in notes(before))
    run.ledger.append(
        [
            evaluation(1, accuracy=0.896, energy_pj=41e6, split="recalibrated"),
            evaluation(2, accuracy=0.92, energy_pj=20e6, split="recalibrated"),
        ]
    )
    report = build_report(run)
    assert [item.recalibrated_accuracy for item in report.best] == [0.896, 0.896, 0.92]
    drops = [item.recalibrated_accuracy_drop for item in report.best]
    assert drops == pytest.approx([0.4, 0.4, -2.0])
    assert {item.recalibration_error for item in report.best} == {None}
    line = "Compressed from another calibration sample, the best lose 0.40, 0.40 and -2.00 points."
    assert line in notes(report)
    # All else is as it was.
    assert report.front == before.front
    assert report.evaluations == before.evaluations
    assert [item.accuracy for item in report.best] == [item.accuracy for item in before.best]
    assert [item.energy_pj for item in report.best] == [item.energy_pj for item in before.best]
    best = json.loads(json.dumps(report.to_json(), allow_nan=False))["best"]
    assert best[2]["recalibrated_accuracy"] == 0.92
    page = next(file for file in write_report(run, report) if file.endswith(".html"))
    assert line in Path(page).read_text()


def test_another_calibration_sample_that_failed_is_told(run: RunDirectory) -> None:
    error = "RuntimeError: no images\nfor you"
    failed = evaluation(1, accuracy=None, split="recalibrated", error=error)
    run.ledger.append([failed])
    missing = (
        "Not measured from another calibration sample: best at 0.5, best at 1 "
        "(RuntimeError: no images)."
    )
    report = build_report(run)
    assert [line for line in notes(report) if "calibration" in line] == [missing]
    assert [item.recalibration_error for item in report.best] == [error, error, None]
    run.ledger.append([evaluation(2, accuracy=0.89, split="recalibrated")])
    assert [line for line in notes(build_report(run)) if "calibration" in line] == [
        "Compressed from another calibration sample, the best lose –, – and 1.00 points.",  # noqa: RUF001
        missing,
    ]
    run.ledger.append([replace(failed, accuracy=0.9, error=None)])
    assert missing not in notes(build_report(run))


def test_accuracy_under_attack_is_a_column_where_it_was_measured(
    run: RunDirectory, tmp_path: Path
) -> None:
    assert "attacked %" not in headers(build_report(run))
    attacked = spec(robustness={"attack": "fgsm", "epsilon": 0.1})
    other = RunDirectory.create(tmp_path / "other", attacked)
    for split in ("search", "test"):
        rows = [replace(row, robust_accuracy=0.4) for row in baselines(split)]
        other.ledger.append(rows)
    cheap = evaluation(1, accuracy=0.9, energy_pj=30e6, robust_accuracy=0.1)
    robust = evaluation(2, accuracy=0.9, energy_pj=40e6, robust_accuracy=0.5)
    tested = replace(robust, split="test", robust_accuracy=0.45)
    other.ledger.append([cheap, robust, tested])
    report = build_report(other)
    found = {entry.config_hash: entry for entry in report.front}
    assert {cheap.config_hash, robust.config_hash} <= set(found)
    shown = found[robust.config_hash]
    assert (shown.search_robust_accuracy, shown.robust_accuracy) == (0.5, 0.45)
    assert headers(report)[3] == "attacked %"
    assert cells(report, shown)[3] == "45.00"
    assert found[cheap.config_hash].robust_accuracy is None
    json.dumps(report.to_json(), allow_nan=False)
    page = next(file for file in write_report(other, report) if file.endswith(".html"))
    assert "attacked % on the search split" in Path(page).read_text()


def test_cells_show_percent_and_prefixes(run: RunDirectory) -> None:
    report = build_report(run)
    assert cells(report, report.baselines[2]) == [
        "dense INT8", "90.00", "0.00", "80 µJ", "1.000", "0.500", "100 k", "20 M", "40 kB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 "), (999, "999 "), (1234, "1.23 k"), (2e-6, "2 µ"), (3e-12, "3 p")]
)
def test_scaled(value: float, text: str) -> None:
    assert scaled(value) == text


def test_a_note_tells_where_a_baseline_is_the_best(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", spec(targets=[0.5, 2.0]))
    run.ledger.append([*baselines(), *baselines("test")])
    report = build_report(run)
    assert {item.config_hash for item in report.best} <= {
        item.config_hash for item in report.baselines
    }
    (note,) = (note for note in notes(report) if "nothing cheaper" in note)
    assert "best at 0.5 is dense INT8" in note


def test_a_note_tells_that_the_split_is_too_small_for_a_target(run: RunDirectory) -> None:
    report = build_report(run)
    assert not any("cannot show" in note for note in notes(report))
    assert any(
        "100 images cannot show" in note for note in notes(replace(report, search_images=100))
    )
