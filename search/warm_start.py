"""Policies that an earlier run trained, for another one to start from."""

from __future__ import annotations

import io
import logging

import numpy as np
import pandas as pd

from envs.preference import Preference
from hwmodel.errors import InputError
from search.baselines import DENSE_FP32
from search.baselines import DENSE_INT8
from search.checkpoints import CHECKPOINT
from search.earlier import ACCURACIES
from search.earlier import accuracies_file
from search.front import accuracy_drop
from search.front import baseline
from search.front import cost_ratios
from search.front import distinct
from search.front import hypervolume
from search.learners import LEARNERS
from search.learners import SAME_NETWORKS
from search.learners import learner
from search.run_directory import RunDirectory
from search.spec import Spec

_MENUS = ("methods", "sparsities", "weight_bits", "activation_bits")


def initial_policies(spec: Spec) -> dict[str, bytes]:
    """Files that ``spec.init_from`` asks for, policies and accuracies; none where it is null.

    Where the earlier run has several seeds, policies are those of the seed whose evaluations
    dominate the largest area (:func:`search.front.hypervolume`, on the search split).

    Raises:
        InputError: it is no run, has no policies, or they are of another algorithm or for menus
            of other sizes, or only one of the runs has limits.
    """
    if spec.init_from is None:
        return {}
    if spec.algorithm not in LEARNERS:
        allowed = f"{spec.algorithm} has no policies; {', '.join(LEARNERS)} have"
        raise InputError("init_from", spec.init_from, allowed)
    try:
        run = RunDirectory.open(spec.init_from)
    except InputError as error:
        field = "init_from" if error.field in ("run", "output") else error.field
        raise InputError(field, error.value, error.allowed) from None
    earlier = run.spec()
    _check_same_kind(spec, earlier)
    policies = run.storage.child("policies")
    folders = {seed: policies.child(f"seed-{seed}") for seed in earlier.seeds}
    trained = [seed for seed, folder in folders.items() if CHECKPOINT in folder.names("init_from")]
    if not trained:
        raise InputError("init_from", spec.init_from, "it has no policies yet; let it run longer")
    rows, preference = run.ledger.read(), earlier.goals.preference
    best = folders[max(trained, key=lambda seed: _dominated_area(rows, seed, preference))]
    try:
        content = best.read(CHECKPOINT)
        _check_shapes(content, spec)
    except Exception as error:  # torch and zipfile raise many kinds
        allowed = f"it is damaged, or of another version of joulecut ({error})"
        raise InputError("init_from", f"{best.location}/{CHECKPOINT}", allowed) from None
    return {CHECKPOINT: content, ACCURACIES: accuracies_file(rows)}


def _check_same_kind(spec: Spec, earlier: Spec) -> None:
    same = SAME_NETWORKS if spec.algorithm in SAME_NETWORKS else (spec.algorithm,)
    if earlier.algorithm not in same:
        allowed = f"it is a run of {earlier.algorithm}; use one of {' or '.join(same)}"
        raise InputError("init_from", spec.init_from, allowed)
    if bool(earlier.goals.limits.given) != bool(spec.goals.limits.given):
        allowed = "its policies see limits and this run has none; use one without limits"
        if spec.goals.limits.given:
            allowed = "its policies see no limits, and this run has some; use one with limits"
        raise InputError("init_from", spec.init_from, allowed)
    units = [list(each.policy_settings.hidden_of(each.algorithm)) for each in (earlier, spec)]
    if units[0] != units[1]:
        allowed = f"its networks have hidden layers of {units[0]} units and this one's {units[1]}"
        raise InputError("init_from", spec.init_from, f"{allowed}; use the same policies.hidden")
    sizes = zip(_MENUS, _menu_sizes(earlier), _menu_sizes(spec), strict=True)
    for menu, there, here in sizes:
        if there != here:
            allowed = f"its space.{menu} has {there} entries and this one's {here}; use as many"
            raise InputError("init_from", spec.init_from, allowed)


def _menu_sizes(spec: Spec) -> list[int]:
    return [len(getattr(spec.space, menu)) for menu in _MENUS]


def _dominated_area(rows: pd.DataFrame, seed: int, preference: Preference) -> float:
    """Share of the box that a seed's own evaluations dominate, 0..1."""
    dense, int8 = (baseline(rows, name, "search") for name in (DENSE_FP32, DENSE_INT8))
    if dense is None or int8 is None:
        return 0.0
    searched = distinct(rows, "search")
    own = searched[searched["seed"] == seed]
    drops = np.nan_to_num(accuracy_drop(own, dense), nan=np.inf)
    return hypervolume(cost_ratios(own, int8, preference), drops)


def _check_shapes(content: bytes, spec: Spec) -> None:
    """Raise ValueError or KeyError unless a checkpoint's networks are those of the algorithm."""
    import torch

    _, modules = learner(spec.algorithm, spec.policy_settings)
    # It warns of its own use of what it is about to give up.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    # Weights only: a run directory may come from someone else, and pickles run code.
    state = torch.load(io.BytesIO(content), weights_only=True)["modules"]
    specs = modules(np.array(_menu_sizes(spec)), bool(spec.goals.limits.given)).rl_module_specs
    for agent, module in specs.items():
        for name, expected in module.build().state_dict().items():
            found, needed = tuple(state[agent][name].shape), tuple(expected.shape)
            if found != needed:
                raise ValueError(f"{agent}.{name} has shape {found} instead of {needed}")
