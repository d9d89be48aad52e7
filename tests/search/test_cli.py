from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from ledger_rows import baselines
from ledger_rows import evaluation
from test_spec import spec

from envs.attack import Attack
from hwmodel.errors import InputError
from search.cli import main
from search.commands.searching import FLAGS
from search.goals import Goal
from search.ledger import COLUMNS
from search.report import build_report
from search.run_directory import RunDirectory
from search.spec import Spec

SEARCH = ("search", "--task", "digits", "--accelerator", "eyeriss-like")
VERBS = [
    *("search", "resume", "batch", "prepare", "status", "report", "export"),
    *("evaluate", "cost", "compare", "tasks", "accelerators", "benchmark"),
]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "run", spec())
    run.ledger.append([*baselines(), *baselines("test"), evaluation(1, energy_pj=20e6)])
    return run


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put functions in place of a module that a verb imports when it runs."""

    def put(name: str, **functions: object) -> None:
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task loads, at once."""
    monkeypatch.setattr("envs.tasks.TaskSpec.load", lambda self: None)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"joulecut {verb}" in capsys.readouterr().out


def test_cheap_verbs_load_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from search.cli import main; main(['accelerators', '--json']);"
        "assert not {'torch', 'ray', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_search_runs_the_specification_that_flags_make(
    tmp_path: Path, provide: Callable[..., None], loadable: None, capsys
) -> None:
    seen: list[Spec] = []

    def run_search(run: RunDirectory, spec: Spec) -> None:
        seen.append(spec)
        run.ledger.append([*baselines(), *baselines("test"), evaluation(1, energy_pj=20e6)])

    provide("search.runner", run_search=run_search)
    output = str(tmp_path / "run")
    flags = ["--seeds", "2", "--budget", "40", "--time-budget", "5m", "--algorithm", "random"]

    flags += ["--targets", "1,3", "--quantizers", "per-layer"]
    flags += ["--limits", "model_bytes=25e4,bops=7"]
    flags += ["--preference", "latency_cycles=3,energy_pj=1"]

    assert main([*SEARCH, *flags, "--output", output]) == 0

    assert seen[0].seeds == (0, 1)
    assert (seen[0].budget, seen[0].time_budget, seen[0].algorithm) == (40, "5m", "random")
    assert seen[0].targets == (1, 3)
    assert seen[0].space.quantizer.activation_placement == "per-layer"
    assert seen[0].goals.limits.given == {"model_bytes": 250_000, "bops": 7}
    assert seen[0].goals.preference.given == {"energy_pj": 0.25, "latency_cycles": 0.75}
    out = capsys.readouterr().out
    assert "dense INT8" in out
    assert "best at 1" in out
    assert f"{output}/ledger" in out


def test_flags_override_the_file(
    tmp_path: Path, provide: Callable[..., None], loadable: None
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "task: {name: digits, weights: old.pt}\naccelerator: eyeriss-like\noutput: nowhere\n"
        "budget: 100\nseeds: [4]\nspace: {weight_bits: [4, 8]}\n"
    )
    seen: list[Spec] = []
    provide("search.runner", run_search=lambda run, spec: seen.append(spec))

    main(["search", str(path), "--task", "digits", "--budget", "50", "--output", f"{tmp_path}/run"])

    assert seen[0].budget == 50
    assert seen[0].seeds == (4,)
    assert seen[0].task.weights is None  # those of the task that was replaced
    assert seen[0].space.weight_bits == (4, 8)


@pytest.mark.parametrize(("text", "seeds"), [("3", (0, 1, 2)), ("0,5,7", (0, 5, 7)), ("9,", (9,))])
def test_seeds_are_a_count_or_a_list(
    tmp_path: Path, provide: Callable[..., None], loadable: None, text: str, seeds: tuple[int, ...]
) -> None:
    seen: list[Spec] = []
    provide("search.runner", run_search=lambda run, spec: seen.append(spec))
    main([*SEARCH, "--output", f"{tmp_path}/run", "--seeds", text])
    assert seen[0].seeds == seeds


def test_an_interrupted_search_exits_130_and_can_be_resumed(
    tmp_path: Path, provide: Callable[..., None], loadable: None, capsys
) -> None:
    def run_search(run: RunDirectory, spec: Spec) -> None:
        with run.driving():
            first = run.ledger.read().empty
            run.ledger.append([evaluation(int(first))])
            if first:
                raise KeyboardInterrupt

    provide("search.runner", run_search=run_search)
    output = str(tmp_path / "run")

    assert main([*SEARCH, "--output", output]) == 130
    assert f"joulecut resume {output}" in capsys.readouterr().err
    assert RunDirectory.open(output).status()["state"] == "interrupted"

    assert main(["resume", output]) == 0
    status = RunDirectory.open(output).status()
    assert (status["state"], status["evaluations"]) == ("completed", 2)


def test_input_refused_before_the_first_evaluation_leaves_no_run(
    tmp_path: Path, provide: Callable[..., None], loadable: None
) -> None:
    def run_search(run: RunDirectory, spec: Spec) -> None:
        raise InputError("space.pinned", "conv9", "use first, last or a layer")

    provide("search.runner", run_search=run_search)
    assert main([*SEARCH, "--output", f"{tmp_path}/run"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["own", "link"])
def test_input_refused_before_the_first_evaluation_leaves_a_folder_that_was_there(
    tmp_path: Path, provide: Callable[..., None], loadable: None, name: str
) -> None:
    def run_search(run: RunDirectory, spec: Spec) -> None:
        raise InputError("space.pinned", "conv9", "use first, last or a layer")

    own = tmp_path / "own"
    own.mkdir(mode=0o750)
    (tmp_path / "link").symlink_to(own)
    before = own.stat().st_ino
    provide("search.runner", run_search=run_search)
    assert main([*SEARCH, "--output", f"{tmp_path}/{name}"]) == 2
    assert list(own.iterdir()) == []
    assert (own.stat().st_ino, own.stat().st_mode & 0o777) == (before, 0o750)
    assert (tmp_path / "link").is_symlink()


def test_status(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", run.location, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert {"state", "evaluations", "budget", "ledger"} <= set(status)
    assert len(pd.read_parquet(status["ledger"])) == 13

    assert main(["status", run.location]) == 0
    assert "7 of 300 evaluations" in capsys.readouterr().out


def test_report(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", run.location, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluations"] == 7

    assert main(["report", run.location]) == 0
    out = capsys.readouterr().out
    assert "uniform 4-bit" in out
    assert f"{run.location}/report/report.html" in out
    assert Path(run.location, "report", "report.html").exists()


def test_evaluate_prints_values_with_their_units(provide: Callable[..., None], capsys) -> None:
    result = {
        "config_hash": "0123456789abcdef",
        "accuracy": 0.98224,
        "seconds": 1.2345,
        "energy_pj": 21.34e6,
        "latency_cycles": float("nan"),
        "bops": 7.17e8,
        "model_bytes": 174_000.0,
    }
    provide("search.evaluate", evaluate_config=lambda *_: result)
    assert main(["evaluate", "--task", "digits", "--accelerator", "eyeriss-like"]) == 0
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [(name, text.strip()) for name, text in lines] == [
        ("configuration", "0123456789abcdef (as trained, FP32)"),
        ("accuracy", "98.22 %"),
        ("seconds", "1.23"),
        ("energy", "21.3 µJ"),
        ("latency cycles", "not known"),
        ("BOPs", "717 M"),
        ("model", "174 kB"),
    ]


def test_evaluate_prints_one_document_though_libraries_print_too(
    tmp_path: Path, provide: Callable[..., None], capsys
) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"version": 1, "layers": {"stem": {"weight_bits": 4}}}')

    def evaluate_config(
        task, config, accelerator, level, split, attack, calibration_seed
    ) -> dict[str, object]:
        print("Downloading data ...")
        assert config.layers["stem"].weight_bits == 4
        assert (task.name, accelerator.name, level, split) == (
            "digits",
            "nvdla-small",
            "mid",
            "all",
        )
        assert attack == Attack("fgsm", 0.01)
        return {"accuracy": 0.5, "energy_pj": float("nan")}

    provide("search.evaluate", evaluate_config=evaluate_config)
    arguments = ["evaluate", "--task", "digits", "--accelerator", "nvdla-small", "--split", "all"]
    arguments += ["--attack", "fgsm", "--epsilon", "0.01"]

    assert main([*arguments, "--config", str(config), "--json"]) == 0

    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"accuracy": 0.5, "energy_pj": None}
    assert "Downloading" in captured.err


def test_export_hands_over_run_limit_and_folder(
    run: RunDirectory, tmp_path: Path, provide: Callable[..., None], capsys
) -> None:
    def export(run: RunDirectory, goal: Goal, folder: str) -> dict[str, object]:
        return {
            "run": run.location,
            "goal": goal.name,
            "files": [f"{folder}/network.py"],
            "energy_pj": 604_300.0,
            "test_accuracy_drop": None,
            "search_images": 450,
        }

    provide("search.export", export=export)
    assert main(["export", run.location, "--max-accuracy-drop", "1", "--output", "out"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "out/network.py",
        f"run: {run.location}",
        "goal: best at 1",
        "test_accuracy_drop: not measured yet",
        "search_images: 450",
        "energy: 604 nJ",
    ]
    assert main(["export", run.location, "--max-energy-ratio", "0.5", "--output", "out"]) == 0
    assert "goal: best at 0.5 of INT8\n" in capsys.readouterr().out
    assert main(["export", run.location, "--max-accuracy-drop", "0.1", "--output", "out"]) == 0
    assert "cannot show that less than 0.52 points are lost" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
@pytest.mark.parametrize("flag", ["--max-accuracy-drop", "--max-energy-ratio"])
def test_export_refuses_goals_that_nothing_reaches(
    run: RunDirectory, flag: str, value: str, capsys
) -> None:
    assert main(["export", run.location, flag, value, "--output", "out"]) == 2
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["tasks", "accelerators"])
def test_catalogues(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--json"]) == 0
    names = {entry["name"] for entry in json.loads(capsys.readouterr().out)[verb]}
    assert names & {"digits", "eyeriss-like"}
    assert main([verb]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def test_a_run_that_has_nothing_left_to_do_is_resumed_at_once(
    tmp_path: Path, provide: Callable[..., None], capsys
) -> None:
    went_on = []
    provide("search.runner", run_search=lambda run, spec: went_on.append(run))
    searched = [evaluation(number) for number in range(10)]  # of 16, with the baselines
    run = RunDirectory.create(tmp_path / "run", spec(budget=16))
    run.ledger.append([*baselines(), *baselines("test"), *searched[1:]])
    with run.driving():
        pass
    assert main(["resume", run.location]) == 0
    run.ledger.append(searched[:1])
    assert main(["resume", run.location]) == 0  # its pick is not verified
    assert len(went_on) == 2
    picked = build_report(run).best[0].config_hash
    run.ledger.append([replace(row, split="test") for row in searched if row.config_hash == picked])
    capsys.readouterr()
    assert main(["resume", run.location]) == 0
    assert len(went_on) == 2
    assert "best at 1" in capsys.readouterr().out
    part = next((tmp_path / "run" / "ledger").glob("part-*"))
    part.write_bytes(part.read_bytes()[:100])
    main(["resume", run.location])  # which would set the damaged part aside
    assert len(went_on) == 3


def test_bad_input_in_a_worker_is_told_without_its_traceback(
    run: RunDirectory, provide: Callable[..., None], capsys
) -> None:
    from ray.exceptions import RayTaskError

    def run_search(*_: object, **__: object) -> None:
        cause = InputError("weights", "w.pt", "they must fit")
        traceback = "ray::evaluate()\n  File ...\nInputError"
        raise RayTaskError("evaluate", traceback, cause).as_instanceof_cause()

    provide("search.runner", run_search=run_search)
    assert main(["resume", run.location]) == 2
    assert capsys.readouterr().err == (
        "joulecut: error: weights: 'w.pt' is not allowed; they must fit\n"
    )


def test_what_nobody_expected_to_fail_is_one_line_and_a_file(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no images\nare left")

    monkeypatch.setattr("search.runner.prepare_evaluator", fail)
    assert main(["resume", run.location]) == 1
    *_, line = capsys.readouterr().err.splitlines()  # after the stages of the search
    (kept,) = Path(run.location, "errors").iterdir()
    assert line == f"joulecut: error: are left; traceback in {kept}"
    assert "ZeroDivisionError: no images" in kept.read_text()
    assert run.status()["state"] == "failed"


def test_module_can_be_run(run: RunDirectory) -> None:
    command = [sys.executable, "-m", "search.cli", "status", run.location, "--json"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(result.stdout)["evaluations"] == 7


def test_the_manual_names_every_verb_flag_and_field(run: RunDirectory) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    report = build_report(run).to_json()
    named = [*VERBS, *FLAGS.values(), *run.status(), *report, *report["best"][0], *COLUMNS]
    assert [name for name in named if f"`{name}`" not in manual] == []


def test_the_manual_shows_the_defaults(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    example = manual.split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "spec.yaml"
    path.write_text(example)
    assert Spec.load(path).to_json() == spec(output="runs/digits").to_json()
