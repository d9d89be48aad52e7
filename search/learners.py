"""The algorithms that have policies: what makes their agents and their networks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from search.policy_settings import DEFAULT_SETTINGS
from search.policy_settings import PolicySettings

if TYPE_CHECKING:
    from typing import Protocol

    import numpy as np
    from numpy.typing import NDArray
    from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

    from envs.accuracy import AccuracySource
    from envs.episode import TARGETS
    from envs.problem import CompressionProblem
    from search.agents import Agents

    class MakeAgents(Protocol):
        """Makes agents of a problem, a judge of accuracy and a seed."""

        def __call__(
            self,
            problem: CompressionProblem,
            accuracy: AccuracySource,
            seed: int = 0,
            targets: tuple[float, float] = TARGETS,
            *,
            settings: PolicySettings = DEFAULT_SETTINGS,
        ) -> Agents: ...

    class MakeModules(Protocol):
        """Makes the networks for menus of given sizes, of problems with limits or without."""

        def __call__(
            self,
            sizes: NDArray[np.int64],
            limited: bool,
            *,
            settings: PolicySettings = DEFAULT_SETTINGS,
        ) -> MultiRLModuleSpec: ...


LEARNERS = ("ppo", "appo", "ppo-rounds", "composite")
"""Algorithms that have policies."""
SAME_NETWORKS = ("ppo", "appo")
"""Those of them that train the same networks: policies of one can start another."""
MEASURED_LEARNERS = ("ppo", "composite")
"""Those whose policies can learn from true evaluations alone. The others ask for the accuracy of
every decision."""


def learner(
    algorithm: str, settings: PolicySettings = DEFAULT_SETTINGS
) -> tuple[MakeAgents, MakeModules]:
    """What makes agents of a problem, a judge of accuracy and a seed, and what makes the networks
    of all agents for menus of given ``SearchSpace.sizes``, of problems with limits or without.

    Args:
        algorithm: One of ``LEARNERS``.
        settings: Those of its settings that count.
    """
    make_agents, make_modules = _makers(algorithm)
    return partial(make_agents, settings=settings), partial(make_modules, settings=settings)


def _makers(algorithm: str) -> tuple[MakeAgents, MakeModules]:
    # RLlib takes seconds to import, and only the policies need it.
    if algorithm == "ppo":
        from search.ppo import ppo_agents
        from search.ppo import ppo_modules

        return ppo_agents, ppo_modules
    if algorithm == "appo":
        from search.appo import appo_agents
        from search.appo import appo_modules

        return appo_agents, appo_modules
    if algorithm == "ppo-rounds":
        from search.rounds import rounds_agents
        from search.rounds import rounds_modules

        return rounds_agents, rounds_modules
    from search.composite import composite_agents
    from search.composite import composite_modules

    return composite_agents, composite_modules
