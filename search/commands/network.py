"""``evaluate``: one configuration of one network, without a run."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any
from typing import get_args

from envs.attack import Attack
from envs.attack import AttackMethod
from hwmodel.errors import InputError
from search.commands._shared import Verbs
from search.commands._shared import add_json
from search.commands._shared import add_task
from search.commands._shared import add_verb
from search.commands._shared import print_json
from search.commands._shared import stdout_for_json
from search.commands._shared import task_spec


def add_verbs(verbs: Verbs) -> None:
    """Declare ``evaluate``."""
    evaluate = add_verb(verbs, "evaluate", _evaluate, "accuracy and cost of one configuration")
    add_task(evaluate)
    evaluate.add_argument("--config", type=Path, help="JSON file; the dense network without it")
    evaluate.add_argument("--level", choices=("coarse", "mid", "fine"), default="mid")
    add_json(evaluate)
    evaluate.add_argument("--accelerator", default="eyeriss-like", help="preset or YAML file")
    evaluate.add_argument(
        "--split", choices=("calibration", "search", "test", "all"), default="search"
    )
    evaluate.add_argument(
        "--attack", choices=get_args(AttackMethod), help="measure under this attack too"
    )
    evaluate.add_argument(
        "--epsilon", type=float, help="most that it changes a value, as a share of the range"
    )
    evaluate.add_argument(
        "--attack-steps", type=int, help=f"steps of pgd, {Attack.steps} by default"
    )
    evaluate.add_argument(
        "--attack-images", type=int, help=f"images that it changes, {Attack.images} by default"
    )
    evaluate.add_argument(
        "--calibration-seed", type=int, help="compress from another calibration sample, 1 or more"
    )


def _attack(args: argparse.Namespace) -> Attack | None:
    flags = {"epsilon": "--epsilon", "steps": "--attack-steps", "images": "--attack-images"}
    values = (args.epsilon, args.attack_steps, args.attack_images)
    given = {name: value for name, value in zip(flags, values, strict=True) if value is not None}
    if args.attack is None:
        for name, value in given.items():
            raise InputError(flags[name], value, "give an --attack with it")
        return None
    if "epsilon" not in given:
        raise InputError("--epsilon", None, "an attack needs it: 0.004 is one step of a byte")
    try:
        return Attack(args.attack, **given)
    except InputError as error:
        raise InputError(flags[error.field], error.value, error.allowed) from None


def _evaluate(args: argparse.Namespace) -> None:
    from envs.config import CompressionConfig
    from hwmodel import load_accelerator

    attack, calibration_seed = _attack(args), args.calibration_seed
    if calibration_seed is not None and calibration_seed < 1:
        raise InputError("--calibration-seed", calibration_seed, "use 1 or more")
    if calibration_seed is not None and args.config is None:
        allowed = "only a configuration of --config depends on calibration data"
        raise InputError("--calibration-seed", calibration_seed, allowed)
    config = CompressionConfig.load(args.config) if args.config else None
    accelerator = load_accelerator(args.accelerator)
    from search.evaluate import evaluate_config

    with stdout_for_json(args.json):
        result = evaluate_config(
            task_spec(args),
            config,
            accelerator,
            args.level,
            args.split,
            attack,
            calibration_seed,
        )
    if args.json:
        print_json(result)
        return
    lines = dict(_line(key, value, accelerator.energy_unit) for key, value in result.items())
    if config is None:
        lines["configuration"] += " (as trained, FP32)"
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")


def _line(key: str, value: Any, energy_unit: str) -> tuple[str, str]:
    """A field of the result as people read it: its name, and its value with a unit."""
    from search.cost_table import energy_text
    from search.table import scaled

    name = {"config_hash": "configuration", "bops": "BOPs"}.get(key, key.replace("_", " "))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return name, "not known"
    if key == "energy_pj":
        return "energy", energy_text(value, energy_unit)
    if key.endswith("accuracy"):
        return name, f"{100 * value:.2f} %"
    if key == "seconds":
        return name, f"{value:.3g}"
    for suffix, unit in (("_cycles", " cycles"), ("_bytes", "B"), ("bops", "")):
        if key.endswith(suffix):
            return name.removesuffix(suffix.replace("_", " ")), f"{scaled(value).strip()}{unit}"
    return name, str(value)
