"""Bad input: exit code 2, one line that names field, value and what is allowed, nothing touched."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from ledger_rows import baselines
from ledger_rows import evaluation
from test_spec import spec

from search._driver import Driver
from search.cli import main
from search.run_directory import RunDirectory

SPEC = """\
task: digits
accelerator: eyeriss-like
output: {output}
budget: 40
"""


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        arguments: Of ``joulecut``; ``{here}`` stands for a folder with a spec.yaml and a ``run``.
        line: Parts of the line on stderr.
        spec: Added to spec.yaml.
        files: Content by name, written (over what is there) before the command.
        gone: Files removed before the command.
    """

    arguments: str
    line: tuple[str, ...]
    spec: str = ""
    files: tuple[tuple[str, str], ...] = ()
    gone: tuple[str, ...] = ()


def bad_spec(text: str, *line: str) -> Case:
    return Case("search {here}/spec.yaml", line, spec=text)


def bad_flag(flags: str, *line: str) -> Case:
    return Case(f"search {{here}}/spec.yaml {flags}", line)


def bad_run(name: str, content: str, *line: str, verb: str = "status") -> Case:
    return Case(f"{verb} {{here}}/run", line, files=((f"run/{name}", content),))


def bad_config(content: str, *line: str) -> Case:
    command = "evaluate --task digits --config {here}/config.json --json"
    return Case(command, line, files=(("config.json", content),))


CASES = {
    # the specification
    "unknown key": bad_spec("budgett: 3", "budgett: 3", "did you mean budget?"),
    "unknown key in a section": bad_spec("space: {bits: 4}", "space.bits", "weight_bits"),
    "not YAML": bad_spec("seeds: [0, 1", "spec.yaml, line", "valid YAML"),
    "a tab in YAML": bad_spec("space:\n\tsparsities: [0.5]", "line 6", "valid YAML"),
    "drop below zero": bad_spec("targets: [-0.5]", "targets[0]: -0.5", "greater than 0"),
    "drop of zero": bad_spec("targets: [0]", "targets[0]: 0", "greater than 0"),
    "drop not finite": bad_spec("targets: [.nan]", "targets[0]: nan", "100"),
    "one bit": bad_spec("space: {weight_bits: [1, 8]}", "space.weight_bits[0]: 1", "to 2"),
    "nine bits": bad_spec("space: {activation_bits: [9]}", "activation_bits[0]: 9", "to 8"),
    "bits twice": bad_spec("space: {weight_bits: [4, 4]}", "space.weight_bits", "once"),
    "no bits": bad_spec("space: {weight_bits: []}", "space.weight_bits: []", "at least one"),
    "sparsity above one": bad_spec("space: {sparsities: [1.5]}", "sparsities[0]: 1.5", "less"),
    "sparsity below zero": bad_spec("space: {sparsities: [-0.1]}", "sparsities[0]", "greater"),
    "unknown method": bad_spec(
        "space: {methods: [none, l3]}", "space.methods[1]: 'l3'", "filter/l2"
    ),
    "pinned bits": bad_spec(
        "space: {pinned: {first: {weight_bits: 9}}}", "space.pinned.first.weight_bits: 9", "2 to 8"
    ),
    "pinned key": bad_spec("space: {pinned: {last: {bits: 8}}}", "pinned.last.bits", "weight_bits"),
    "wrong type": bad_spec("seeds: three", "seeds: 'three'", "list"),
    "yes is not a number": bad_spec("resources: {evaluators: yes}", "evaluators: True", "integer"),
    "repair": bad_spec("space: {repair: hope}", "space.repair: 'hope'", "'layerwise'"),
    "coarse prices no energy": bad_spec("level: coarse", "level: 'coarse'", "'mid'"),
    "no such file": Case("search {here}/nope.yaml", ("spec:", "nope.yaml", "readable file")),
    "not a mapping": Case(
        "search {here}/list.yaml", ("list.yaml", "mapping"), files=(("list.yaml", "[1, 2]"),)
    ),
    "binary file": Case("search {here}/bin", ("spec:", "UTF-8"), files=(("bin", "\udcff\udcfe"),)),
    # flags
    "unknown task": bad_flag("--task mnist", "task: 'mnist'", "digits"),
    "unknown accelerator": bad_flag("--accelerator tpu", "accelerator: 'tpu'", "eyeriss-like"),
    "small budget": bad_flag("--budget 3", "--budget: 3", "16"),
    "budget in words": bad_flag("--budget many", "--budget", "'many'", "int"),
    "negative seed": bad_flag("--seeds -1", "--seeds"),
    "no seeds": bad_flag("--seeds 0", "--seeds", "'0'", "2 means 0,1"),
    "a billion seeds": bad_flag("--seeds 1000000000", "--seeds", "'1000000000'", "at most"),
    "more seeds than evaluations": bad_flag("--seeds 40", "budget: 40", "at least 46", "40 seeds"),
    "empty task": Case(
        "search --task= --accelerator eyeriss-like --output {here}/new", ("--task: ''", "1 char")
    ),
    "equal seeds": bad_flag("--seeds 3,3", "--seeds: [3, 3]", "once"),
    "algorithm": bad_flag("--algorithm sac", "--algorithm: 'sac'", "'random'"),
    "accuracy": bad_flag("--accuracy true", "--accuracy: 'true'", "'predicted' or 'measured'"),
    "accuracy without policies": bad_flag(
        "--algorithm dp --accuracy measured",
        *("--accuracy: 'measured'", "use 'predicted' with dp", "needs ppo or composite"),
    ),
    "start from no run": bad_flag(
        "--init-from {here}/nope", "init_from", "nope", "joulecut search"
    ),
    "start from another folder": bad_flag("--init-from {here}", "init_from", "there is no run"),
    "start from an unknown kind": bad_flag("--init-from gopher://x/y", "init_from", "s3://bucket"),
    "start from a run without policies": bad_flag(
        "--init-from {here}/run", "init_from", "/run", "no policies yet"
    ),
    "start from another algorithm": bad_flag(
        "--algorithm composite --init-from {here}/run",
        *("init_from", "a run of ppo", "use one of composite"),
    ),
    "start what has no policies": bad_flag(
        "--algorithm dp+local --init-from {here}/run", "init_from", "dp+local has no policies"
    ),
    "start from other menus": Case(
        "search {here}/spec.yaml --init-from {here}/run",
        ("init_from", "space.weight_bits has 7 entries and this one's 2"),
        spec="space: {weight_bits: [4, 8]}",
    ),
    "start from a broken run": Case(
        "search {here}/spec.yaml --init-from {here}/run",
        ("init_from", "run/spec.yaml", "missing"),
        gone=("run/spec.yaml",),
    ),
    "start from a number": bad_spec("init_from: 3", "init_from: 3", "string"),
    "time": bad_flag("--time-budget 1day", "--time-budget: '1day'", "30m"),
    "target": bad_flag("--targets low", "--targets", "'low'", "0.5,1,2"),
    "unknown flag": bad_flag("--bugdet 3", "--bugdet", "joulecut --help"),
    "unknown verb": Case("serach", ("serach", "search")),
    "missing weights": bad_flag("--task digits --weights {here}/w.pt", "weights", "w.pt", "exists"),
    "weights of another network": Case(
        "search {here}/spec.yaml --weights {here}/w.safetensors",
        ("weights", "w.safetensors"),
        files=(("w.safetensors", "8 bytes and more"),),
    ),
    "no task": Case(
        "search --accelerator eyeriss-like --output {here}/new", ("--task", "required")
    ),
    "no output": Case("search --task digits --accelerator eyeriss-like", ("--output", "required")),
    "output in use": bad_flag("--output {here}/run", "output", "use resume or another --output"),
    "output is a file": bad_flag("--output {here}/spec.yaml", "output", "Not a directory"),
    "output below a file": bad_flag("--output {here}/spec.yaml/run", "output", "Not a directory"),
    "output of unknown kind": bad_flag("--output gopher://x/y", "output", "s3://bucket/path"),
    # run directories
    "no run": Case("status {here}/nope", ("run:", "nope", "joulecut search")),
    "not a run": Case("report {here}", ("run:", "there is no run", "joulecut search")),
    "half-written": Case("resume {here}/run", ("run:", "half-written"), gone=("run/run.json",)),
    "truncated header": bad_run("run.json", '{"format": 1, "spe', "run.json", "half-written"),
    "header of another kind": bad_run("run.json", "[]", "run.json", "damaged"),
    "another version": bad_run("run.json", '{"format": 99}', "run.json: format: 99", "format 1"),
    "truncated state": bad_run("state.json", "", "state.json", "half-written"),
    "no specification": Case(
        "status {here}/run", ("spec.yaml", "missing"), gone=("run/spec.yaml",)
    ),
    "changed specification": bad_run(
        "spec.yaml",
        spec(budget=500).to_yaml(),
        *("spec.budget: 500", "started with 300"),
        verb="resume",
    ),
    "another level": bad_run(
        "spec.yaml",
        spec(level="fine").to_yaml(),
        *("spec.level: 'fine'", "started with 'mid'"),
        verb="resume",
    ),
    "broken specification": bad_run("spec.yaml", "task: {", "spec.yaml, line 1", verb="resume"),
    "damaged ledger": bad_run("ledger/part-0.parquet", "PAR1", "part-0.parquet", "whole Parquet"),
    "damaged ledger, report": bad_run(
        "ledger/part-0.parquet", "", "part-0.parquet", "whole Parquet", verb="report"
    ),
    "export without limit": Case(
        "export {here}/run --max-accuracy-drop 0 --output {here}/out",
        ("--max-accuracy-drop: 0.0", "above 0"),
    ),
    # configurations
    "config is not JSON": bad_config("{", "config", "valid JSON"),
    "config without layers": bad_config('{"version": 1}', "config.layers", "required"),
    "config of another version": bad_config('{"version": 2, "layers": {}}', "config.version: 2"),
    "config bits": bad_config(
        '{"version": 1, "layers": {"stem": {"weight_bits": 9}}}', "layers.stem.weight_bits: 9", "8"
    ),
    "config sparsity": bad_config(
        '{"version": 1, "layers": {"a": {"granularity": "element", "criterion": "l1", '
        '"sparsity": 1.0}}}',
        *("layers.a.sparsity: 1.0", "0 <= sparsity < 1"),
    ),
    "config key": bad_config('{"version": 1, "layers": {"a": {"bits": 8}}}', "layers.a.bits: 8"),
    "no config": Case(
        "cost --task digits --accelerator eyeriss-like --config {here}/nope", ("config:", "nope")
    ),
    "calibration seed": Case(
        "evaluate --task digits --calibration-seed 0", ("--calibration-seed: 0", "1 or more")
    ),
    "split": Case("evaluate --task digits --split train", ("--split", "'train'", "calibration")),
    "attack without its size": Case(
        "evaluate --task digits --attack pgd", ("--epsilon: None", "an attack needs it")
    ),
    "size without an attack": Case(
        "evaluate --task digits --epsilon 0.1", ("--epsilon: 0.1", "--attack")
    ),
    "steps without an attack": Case(
        "evaluate --task digits --attack-steps 5", ("--attack-steps: 5", "--attack")
    ),
    "size of an attack": Case(
        "evaluate --task digits --attack pgd --epsilon nan", ("--epsilon: nan", "above 0 to 1")
    ),
    "steps of an attack": Case(
        "evaluate --task digits --attack pgd --epsilon 0.1 --attack-steps 0",
        ("--attack-steps: 0", "1 or more"),
    ),
    "cost of unknown accelerator": Case(
        "cost --task digits --accelerator tpu", ("accelerator: 'tpu'", "nvdla-small")
    ),
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a specification and a run."""
    (tmp_path / "spec.yaml").write_text(SPEC.format(output=tmp_path / "new"))
    RunDirectory.create(tmp_path / "run", spec()).ledger.append([*baselines(), evaluation(1)])
    return tmp_path


@pytest.fixture(autouse=True)
def runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input is found before any search begins."""

    def run_search(*_: object, **__: object) -> None:
        pytest.fail("the search was started")

    module = ModuleType("search.runner")
    module.run_search = run_search  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "search.runner", module)


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder, with the files' bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def run_cli(arguments: list[str]) -> int | str | None:
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def check_one_line(error: str, *parts: str) -> None:
    assert error.startswith("joulecut: error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    for part in parts:
        assert part in error


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input(case: Case, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (here / "spec.yaml").open("a") as file:
        file.write(case.spec)
    for name, text in case.files:
        (here / name).write_text(text, errors="surrogateescape")
    for name in case.gone:
        (here / name).unlink()
    before = content(here)

    code = run_cli(case.arguments.format(here=here).split())

    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    check_one_line(captured.err, *case.line)
    assert content(here) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES], ids=["disk full", "no permission"])
def test_a_disk_that_cannot_be_written(
    here: Path, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def append(run: RunDirectory, *_: object, **__: object) -> None:
        def fail(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
        run.ledger.append([evaluation(2)])

    monkeypatch.setattr("search.storage.PATIENCE_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(sys.modules["search.runner"], "run_search", append)
    before = content(here)

    assert run_cli(["resume", str(here / "run")]) == 2

    check_one_line(capsys.readouterr().err, "ledger: ", os.strerror(code), "space and permission")
    assert content(here) == before


def test_a_live_driver_is_not_disturbed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = here / "run" / "state.json"
    init = Driver.of(1).to_json()  # a process that surely runs
    state.write_text(json.dumps({"state": "running", "driver": init}))
    before = content(here)

    def drive(run: RunDirectory, *_: object, **__: object) -> None:
        with run.driving():
            pytest.fail("two drivers")

    sys.modules["search.runner"].run_search = drive  # type: ignore[attr-defined]
    assert run_cli(["resume", str(here / "run")]) == 2
    check_one_line(capsys.readouterr().err, "run: ", "process 1 on ", "stop it")
    assert content(here) == before


def test_a_report_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run" / "report").rmdir()
    (here / "run" / "report").write_text("in the way")
    before = content(here)

    assert run_cli(["report", str(here / "run")]) == 2
    check_one_line(capsys.readouterr().err, "report: ", "Not a directory", "folder")
    assert content(here) == before
