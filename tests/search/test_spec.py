from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.attack import Attack
from envs.config import LayerDecision
from envs.limits import CostLimits
from envs.preference import ENERGY
from envs.preference import Preference
from envs.quantizer import Quantizer
from envs.reconstruction_settings import Reconstruction
from hwmodel.errors import InputError
from search.goals import Goals
from search.policy_settings import PolicySettings
from search.spec import Spec
from search.spec import parse_duration

MINIMAL = {"task": "digits", "accelerator": "eyeriss-like", "output": "runs/1"}


def spec(**changes: object) -> Spec:
    return Spec.from_mapping({**MINIMAL, **changes})


def test_a_task_may_be_its_name_alone() -> None:
    assert spec() == spec(task={"name": "digits"})


METHODS = ["element/l1", "n:4/second_order", "4x1/l1", "kernel/random", "filter/reconstruction"]


@given(
    seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=4, unique=True),
    budget=st.integers(16, 10_000),
    targets=st.lists(st.floats(0.01, 50), min_size=1, max_size=4, unique=True),
    bits=st.lists(st.integers(2, 8), min_size=1, unique=True),
    methods=st.lists(st.sampled_from(METHODS), unique=True),
    symmetry=st.sampled_from(["affine", "symmetric"]),
)
def test_yaml_round_trip(tmp_path_factory, seeds, budget, targets, bits, methods, symmetry) -> None:
    methods = [*methods, *({"none"} - set(methods))]
    before = spec(
        seeds=seeds,
        budget=budget,
        targets=targets,
        space={
            "methods": methods,
            "weight_bits": bits,
            "pinned": {"first": {"weight_bits": 8, "activation_bits": 8}},
            "quantizer": {"activation_symmetry": symmetry},
        },
    )
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(before.to_yaml())

    after = Spec.load(path)

    assert after == before
    assert after.hash == before.hash


def test_menus_are_sorted_and_none_is_first() -> None:
    space = spec(
        space={"weight_bits": [8, 2, 4], "sparsities": [0.5, 0.1], "methods": ["filter/l2", "none"]}
    ).space
    assert space.weight_bits == (2, 4, 8)
    assert space.sparsities == (0.1, 0.5)
    assert space.methods == ("none", "filter/l2")


def test_every_seed_has_an_evaluation() -> None:
    assert spec(seeds=list(range(10)), budget=16).budget == 16  # six are the baselines
    for fields, budget in (({"budget": 16}, 16), ({}, 300)):
        seeds = list(range(budget - 5))
        line = rf"^budget: {budget} .*at least {budget + 1}.*{len(seeds)} seeds"
        with pytest.raises(InputError, match=line):
            spec(seeds=seeds, **fields)


def test_paths_are_made_absolute_and_uris_are_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = spec(output="runs/1", resources={"database": "options"})
    after = before.absolute()
    assert after.output == str(tmp_path / "runs/1")
    assert after.resources.database == str(tmp_path / "options")
    assert after.hash == before.hash
    assert spec().absolute().resources == spec().resources
    uris = spec(output="s3://bucket/runs/1", resources={"database": "s3://bucket/options"})
    assert uris.absolute() == uris


@pytest.mark.parametrize(
    "change",
    [
        {"output": "elsewhere"},
        {"resources": {"evaluators": 8, "address": "auto"}},
        {"time_budget": "2h"},
    ],
)
def test_where_and_how_long_do_not_change_the_hash(change) -> None:
    assert spec(**change).hash == spec().hash


@pytest.mark.parametrize(
    "change",
    [
        {"task": {"name": "digits", "weights": "other.safetensors"}},
        {"accelerator": "nvdla-small"},
        {"algorithm": "random"},
        {"accuracy": "measured"},
        {"init_from": "runs/0"},
        {"seeds": [1]},
        {"budget": 301},
        {"targets": [1]},
        {"space": {"repair": "none"}},
        {"space": {"quantizer": {"activation_range": "kl"}}},
        {"space": {"reconstruction": {"rounding": "adaround"}}},
        {"robustness": {"attack": "fgsm", "epsilon": 0.01}},
        {"limits": {"model_bytes": 1000}},
        {"preference": {"latency_cycles": 1}},
        {"policies": {"hidden": [32]}},
    ],
)
def test_what_decides_the_result_changes_the_hash(change) -> None:
    assert spec(**change).hash != spec().hash


def test_a_specification_from_before_what_may_be_left_out_keeps_its_hash() -> None:
    left_out = {"init_from": None, "limits": None, "robustness": None, "accuracy": "predicted"}
    left_out |= {"preference": None, "policies": None}
    assert spec(**left_out).hash == "a372585114768d0d"


@pytest.mark.parametrize(
    "algorithm", ["appo", "ppo-rounds", "dp", "dp+local", "dp+fitted", "random", "optuna-tpe"]
)
def test_only_policies_that_are_paid_at_the_end_learn_from_measured_accuracy(
    algorithm: str,
) -> None:
    assert spec(algorithm=algorithm).accuracy == "predicted"
    with pytest.raises(InputError) as caught:
        spec(algorithm=algorithm, accuracy="measured")
    expected = (
        f"accuracy: 'measured' is not allowed; use 'predicted' with {algorithm}; "
        "'measured' needs ppo or composite"
    )
    assert str(caught.value) == expected


def test_an_unknown_algorithm_is_named_before_its_accuracy() -> None:
    with pytest.raises(InputError, match=r"^algorithm: 'sac'"):
        spec(algorithm="sac", accuracy="measured")


def test_what_is_not_repaired_is_not_reconstructed() -> None:
    space = {"repair": "none", "reconstruction": {"rounding": "adaround"}}
    with pytest.raises(
        InputError, match=r"^space\.reconstruction: .*leave it out with repair none"
    ):
        spec(space=space)
    assert spec(space={"repair": "none", "reconstruction": {"rounding": "gptq"}}).hash


def test_settings_of_policies_are_read_and_written(tmp_path: Path) -> None:
    policies = {"hidden": [32, 16], "learning_rate": 1e-3, "replay_walks": 64}
    told = spec(algorithm="composite", policies=policies)
    assert told.policy_settings == PolicySettings((32, 16), 1e-3, replay_walks=64)
    assert spec().policy_settings == PolicySettings()
    assert spec(policies={}).hash == spec(policies={"hidden": None}).hash == spec().hash
    path = tmp_path / "spec.yaml"
    path.write_text(told.to_yaml())
    assert Spec.load(path) == told


@pytest.mark.parametrize(
    ("algorithm", "policies", "message"),
    [
        ("ppo", {"replay_walks": 64}, r"^policies\.replay_walks: 64 .*; ppo has hidden, "),
        ("composite", {"entropy_coefficient": 0.1}, r"^policies\.entropy_coefficient: 0\.1 "),
        ("ppo-rounds", {"hidden": [30]}, r"^policies\.hidden: \[30\] .*; use one multiple of 4"),
        ("ppo-rounds", {"hidden": [32, 64]}, r"^policies\.hidden: "),
        ("ppo", {"hidden": []}, r"^policies\.hidden: \[\] "),
        ("ppo", {"learning_rate": 0}, r"^policies\.learning_rate: 0 "),
        ("composite", {"replay_walks": 0}, r"^policies\.replay_walks: 0 "),
        ("dp", {"hidden": [32]}, r"^policies: .*dp has no policies"),
    ],
)
def test_settings_that_an_algorithm_does_not_have_are_named(
    algorithm: str, policies: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        spec(algorithm=algorithm, policies=policies)


def test_limits_are_read_and_written(tmp_path: Path) -> None:
    told = spec(targets=[1.0], limits={"model_bytes": 1000, "latency_cycles": 2.5e5})
    assert told.goals == Goals((1.0,), CostLimits(model_bytes=1000.0, latency_cycles=2.5e5))
    assert not spec().goals.limits.given
    assert spec(limits={}).hash == spec(limits={"bops": None}).hash == spec().hash
    path = tmp_path / "spec.yaml"
    path.write_text(told.to_yaml())
    assert Spec.load(path) == told
    with pytest.raises(InputError, match=r"limits\.model_byte: .*did you mean model_bytes\?"):
        spec(limits={"model_byte": 1000})
    with pytest.raises(InputError, match=r"limits\.bops: 0 .*greater than 0"):
        spec(limits={"bops": 0})


def test_weights_of_a_preference_are_taken_over_their_sum(tmp_path: Path) -> None:
    told = spec(targets=[1.0], preference={"energy_pj": 3, "latency_cycles": 1.0, "bops": 0})
    assert told.goals == Goals((1.0,), preference=Preference(energy_pj=0.75, latency_cycles=0.25))
    assert spec().goals.preference == ENERGY
    assert spec(preference={"energy_pj": 7}).hash == spec().hash
    path = tmp_path / "spec.yaml"
    path.write_text(told.to_yaml())
    assert Spec.load(path) == told


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"preference": {}}, r"^preference: .*give one of energy_pj, .* a weight above 0"),
        ({"preference": {"bops": 0}}, r"^preference: .*give one of"),
        ({"preference": {"bops": -1}}, r"^preference\.bops: -1 .*greater than or equal to 0"),
        ({"preference": {"latency": 1}}, r"^preference\.latency: .*did you mean latency_cycles\?"),
        (
            {"preference": {"bops": 1}, "energy_targets": [0.5]},
            r"^preference: .*leave it out with energy_targets",
        ),
    ],
)
def test_a_preference_that_asks_for_nothing_is_refused(changes, line: str) -> None:
    with pytest.raises(InputError, match=line):
        spec(**changes)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("task: digits\nbudget: 20\ntask: cifar10-resnet20\n")
    with pytest.raises(InputError, match=r"spec\.yaml, line 3: .*'task' is there twice"):
        Spec.load(path)


def test_an_attack_is_read_and_written(tmp_path: Path) -> None:
    told = spec(robustness={"attack": "pgd", "epsilon": 0.01, "steps": 7})
    assert told.attack == Attack("pgd", 0.01, steps=7)
    assert spec().attack is None
    path = tmp_path / "spec.yaml"
    path.write_text(told.to_yaml())
    assert Spec.load(path) == told
    with pytest.raises(InputError, match=r"robustness\.epsilom.*did you mean epsilon\?"):
        spec(robustness={"attack": "pgd", "epsilom": 0.01})
    with pytest.raises(InputError, match=r"robustness\.epsilon: 2"):
        spec(robustness={"attack": "pgd", "epsilon": 2.0})
    with pytest.raises(InputError, match=r"robustness\.eps: .*did you mean epsilon\?"):
        spec(robustness={"attack": "pgd", "eps": 0.01})
    with pytest.raises(InputError, match=r"robustness\.epsilon: '1e-3'.*write 0\.001"):
        spec(robustness={"attack": "pgd", "epsilon": "1e-3"})
    with pytest.raises(InputError, match=r"robustness: 'pgd' is not allowed; use a mapping; known"):
        spec(robustness="pgd")


def test_a_run_to_start_from_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert spec(init_from="runs/0").absolute().init_from == f"{tmp_path}/runs/0"
    assert spec(init_from="s3://bucket/runs/0").absolute().init_from == "s3://bucket/runs/0"
    assert spec().absolute().init_from is None


@pytest.mark.parametrize(
    ("name", "values"),
    [("quantizer", {"activation_range": "mse"}), ("reconstruction", {"pruning": "approximate"})],
)
def test_settings_that_are_the_default_are_not_told(name: str, values: dict[str, str]) -> None:
    told = spec(space={name: values})
    assert name not in told.to_json()["space"]
    assert told.hash == spec().hash


def test_a_quantizer_reaches_every_configuration_of_the_menu() -> None:
    given = spec(space={"quantizer": {"activation_range": "percentile:99.9"}}).space.to_menu()
    assert given.quantizer == Quantizer(activation_range="percentile:99.9")
    with pytest.raises(InputError, match=r"space\.quantizer\.activation_range: 'best'"):
        spec(space={"quantizer": {"activation_range": "best"}})
    with pytest.raises(InputError, match=r"space\.quantizer\.zero: 1 is not allowed; known keys"):
        spec(space={"quantizer": {"zero": 1}})


def test_a_pinned_decision_may_leave_keys_out() -> None:
    space = spec(space={"pinned": {"first": {"weight_bits": 8}}}).space
    assert space.pinned == {"first": LayerDecision(weight_bits=8)}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("0s", None), ("5", None), ("-1m", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_a_yaml_error_names_file_line_and_content(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("task: digits\nseeds: [0, 1\nbudget: 300\n")
    with pytest.raises(InputError) as caught:
        Spec.load(path)
    assert caught.value.field == f"{path}, line 3"
    assert caught.value.value == "budget: 300"


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"task: !!python/object/apply:os.mkdir [{tmp_path}/made]\n")
    with pytest.raises(InputError):
        Spec.load(path)
    assert not (tmp_path / "made").exists()


def test_a_misspelt_key_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"space\.weigth_bits.*did you mean weight_bits\?"):
        spec(space={"weigth_bits": [4]})


def test_a_reconstruction_reaches_every_configuration_of_the_menu() -> None:
    given = spec(space={"reconstruction": {"pruning": "exact", "rounding": "adaround"}})
    assert given.space.to_menu().reconstruction == Reconstruction("exact", "adaround")
    assert given.to_json()["space"]["reconstruction"] == {
        "pruning": "exact",
        "rounding": "adaround",
    }
    with pytest.raises(InputError, match=r"space\.reconstruction\.pruning: 'best'.*or exact"):
        spec(space={"reconstruction": {"pruning": "best"}})
    with pytest.raises(InputError, match=r"space\.reconstruction\.steps: 1 .*known keys"):
        spec(space={"reconstruction": {"steps": 1}})
