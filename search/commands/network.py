"""``evaluate``: one configuration of one network, without a run."""

from __future__ import annotations

import argparse
from pathlib import Path
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
    width = max(map(len, result))
    for key, value in result.items():
        text = f"{value:.6g}" if isinstance(value, float) else "none" if value is None else value
        print(f"{key:<{width}}  {text}")
