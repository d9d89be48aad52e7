"""Policies of an earlier run: which are taken, and what is taken of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ledger_rows import baselines
from ledger_rows import evaluation
from test_composite import assert_equal
from test_spec import spec

from envs.episode import start_choice
from hwmodel import InputError
from search.agents import Agents
from search.checkpoints import CHECKPOINT
from search.checkpoints import INITIAL_POLICIES
from search.learners import LEARNERS
from search.learners import learner
from search.measurements import Reference
from search.policy_proposer import PolicyProposer
from search.rounds_modules import LayersModule
from search.run_directory import RunDirectory
from search.spec import Spec
from search.storage import Storage
from search.warm_start import initial_policies
from tests.envs.synthetic import BITS
from tests.envs.synthetic import METHODS
from tests.envs.synthetic import SPARSITIES
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

pytestmark = pytest.mark.usefixtures("local_ray")

SMALL, LARGE = synthetic_problem(blocks=1), synthetic_problem(blocks=4, seed=3)
SPACE = {
    "methods": [str(method) for method in METHODS],
    "sparsities": SPARSITIES,
    "weight_bits": BITS,
    "activation_bits": BITS,
}
MAKERS = {name: learner(name)[0] for name in LEARNERS}


@pytest.fixture(scope="module", params=LEARNERS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(algorithm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """Agents that have played the small problem."""
    agents = MAKERS[algorithm](SMALL, SyntheticAccuracy(SMALL), 0)
    agents.train(32)
    yield agents
    agents.stop()


def outputs(agents: Agents) -> dict[str, torch.Tensor]:
    """What every agent's network says of the same observations."""
    module = agents.algorithm.env_runner.module
    found = {}
    for agent in ("pruning", "precision") if "pruning" in module else ("amounts", "method"):
        shape = module[agent].observation_space.shape[-1:]
        if isinstance(module[agent].unwrapped(), LayersModule):
            shape = (7, *shape)
        seen = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            said = module[agent].forward_inference({"obs": seen})
        found |= {f"{agent} {name}": tensor for name, tensor in said.items()}
    return found


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_agents_of_another_network_start_with_the_policies_and_nothing_else(
    algorithm: str, trained: Agents, tmp_path: Path
) -> None:
    trained.save(tmp_path)
    new = MAKERS[algorithm](LARGE, SyntheticAccuracy(LARGE), 5)
    fresh = copy.deepcopy(new._state())
    assert not are_equal(outputs(new), outputs(trained))

    new.start_from(tmp_path)

    assert are_equal(outputs(new), outputs(trained))
    taken = new._state()
    assert_equal(taken.pop("modules"), trained._state()["modules"])
    del fresh["modules"]
    assert_equal(taken, fresh)
    new.stop()


@pytest.mark.parametrize(("earlier", "later"), [("ppo", "appo"), ("appo", "ppo")])
def test_policies_of_ppo_and_appo_start_each_other(
    earlier: str, later: str, stopped: Callable[[Agents], None], tmp_path: Path
) -> None:
    trained, new = (MAKERS[name](SMALL, SyntheticAccuracy(SMALL), 0) for name in (earlier, later))
    stopped(trained)
    stopped(new)
    trained.train(32)
    content = saved(trained, tmp_path / "saved")
    finished_run(tmp_path / "run", earlier, s0=content)
    asked = spec(algorithm=later, space=SPACE, init_from=str(tmp_path / "run"))
    assert initial_policies(asked)[CHECKPOINT] == content
    new.start_from(tmp_path / "saved")
    assert are_equal(outputs(new), outputs(trained))
    new.train(32)
    assert not are_equal(outputs(new), outputs(trained))


def test_what_has_other_menus_is_not_taken(trained: Agents, tmp_path: Path) -> None:
    state = trained._state()
    agent, weights = next(iter(state["modules"].items()))
    state["modules"][agent] = {name: tensor[:1] for name, tensor in weights.items()}
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="policies"):
        trained.start_from(tmp_path)


def finished_run(path: Path, algorithm: str, **seeds: bytes) -> Spec:
    """A specification that starts from a run whose seeds ``s0``, ``s1`` left these files."""
    wanted = spec(algorithm=algorithm, space=SPACE, seeds=[int(name[1:]) for name in seeds])
    run = RunDirectory.create(path, wanted)
    for name, content in seeds.items():
        folder = run.storage.child("policies").child(f"seed-{name[1:]}")
        folder.make()
        folder.write(CHECKPOINT, content)
    return spec(algorithm=algorithm, space=SPACE, init_from=str(path), seeds=[7])


def saved(agents: Agents, folder: Path) -> bytes:
    agents.save(folder)
    return (folder / CHECKPOINT).read_bytes()


def test_the_policies_of_the_seed_that_found_most_are_taken(
    algorithm: str, trained: Agents, tmp_path: Path
) -> None:
    content = saved(trained, tmp_path / "saved")
    (tmp_path / "other").mkdir()
    torch.save({**trained._state(), "mark": 1}, tmp_path / "other" / CHECKPOINT)
    other = (tmp_path / "other" / CHECKPOINT).read_bytes()
    asked = finished_run(tmp_path / "run", algorithm, s0=other, s1=content, s2=other)
    found = [
        evaluation(1, seed=0, accuracy=0.9, energy_pj=40e6),
        evaluation(2, seed=1, accuracy=0.9, energy_pj=20e6),
        evaluation(3, seed=2, accuracy=0.5, energy_pj=1e6),  # outside of the box
        evaluation(4, seed=2, accuracy=None),
    ]
    RunDirectory.open(tmp_path / "run").ledger.append([*baselines(), *found])
    assert initial_policies(asked)[CHECKPOINT] == content


def test_a_run_keeps_what_it_started_from(algorithm: str, trained: Agents, tmp_path: Path) -> None:
    content = saved(trained, tmp_path / "saved")
    asked = finished_run(tmp_path / "run", algorithm, s0=content)
    run = RunDirectory.create(tmp_path / "new", asked, initial_policies(asked))
    kept = run.storage.child("policies").child(INITIAL_POLICIES)
    assert kept.read(CHECKPOINT) == content


@pytest.mark.parametrize("damage", ["torn", "without networks", "of other sizes"])
def test_policies_that_do_not_fit_are_named(
    algorithm: str, trained: Agents, tmp_path: Path, damage: str
) -> None:
    state = trained._state()
    agent, weights = next(iter(state["modules"].items()))
    state["modules"][agent] = {name: tensor[..., :3] for name, tensor in weights.items()}
    state = state if damage == "of other sizes" else {"modules": {}}
    torch.save(state, tmp_path / CHECKPOINT)
    content = (tmp_path / CHECKPOINT).read_bytes()
    content = content[:500] if damage == "torn" else content
    asked = finished_run(tmp_path / "run", algorithm, s0=content)
    with pytest.raises(InputError, match=r"seed-0/agents\.pt.*damaged") as caught:
        initial_policies(asked)
    assert caught.value.field == "init_from"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("earlier", [None, {"bops": 1e9}])
def test_policies_that_saw_limits_are_not_those_that_saw_none(
    earlier: dict | None, tmp_path: Path
) -> None:
    RunDirectory.create(tmp_path / "run", spec(algorithm="ppo", space=SPACE, limits=earlier))
    own = None if earlier else {"model_bytes": 1e4}
    asked = spec(algorithm="ppo", space=SPACE, init_from=str(tmp_path / "run"), limits=own)
    with pytest.raises(InputError, match="limits") as caught:
        initial_policies(asked)
    assert caught.value.field == "init_from"


def test_networks_of_other_sizes_are_not_taken(algorithm: str, tmp_path: Path) -> None:
    policies = {"hidden": [16]}
    RunDirectory.create(tmp_path / "run", spec(algorithm=algorithm, space=SPACE))
    asked = spec(
        algorithm=algorithm, space=SPACE, init_from=str(tmp_path / "run"), policies=policies
    )
    with pytest.raises(
        InputError, match=r"64\] units and this one's \[16\]; use the same"
    ) as caught:
        initial_policies(asked)
    assert caught.value.field == "init_from"


def test_nothing_is_taken_unless_asked_for() -> None:
    assert initial_policies(spec()) == {}


def test_a_seed_starts_from_the_initial_policies_and_resumes_from_its_own(
    tmp_path: Path, stopped: Callable[[Agents], None]
) -> None:
    trained = MAKERS["ppo"](SMALL, SyntheticAccuracy(SMALL), 0)
    stopped(trained)
    policies = Storage.at(tmp_path)
    trained.save(tmp_path / INITIAL_POLICIES)

    def proposer() -> PolicyProposer:
        energy = float(LARGE.cost(start_choice(LARGE.space)[None]).energy_pj[0])
        reference = Reference(0.9, 0.1, energy, (1.0,))
        made = PolicyProposer(LARGE, reference, 7, MAKERS["ppo"], policies)
        stopped(made._agents)
        return made

    first = proposer()
    assert are_equal(outputs(first._agents), outputs(trained))
    first._agents.train(32)
    first.save()

    second = proposer()

    assert are_equal(outputs(second._agents), outputs(first._agents))
    assert not are_equal(outputs(second._agents), outputs(trained))


@pytest.fixture
def stopped() -> Iterator[Callable[[Agents], None]]:
    """Stops agents at the end of the test."""
    agents: list[Agents] = []
    yield agents.append
    for each in agents:
        each.stop()
