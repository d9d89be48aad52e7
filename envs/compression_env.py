"""The compression game for RLlib: two agents take turns to compress a network.

``CompressionEnv`` walks through the layers and has discrete actions alone, ``CompositeEnv`` walks
too and has one agent with continuous ones, and in ``RoundsEnv`` each agent decides about all
layers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from typing import TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from envs.accuracy import AccuracySource
from envs.composite import AMOUNTS
from envs.composite import COMPOSITE_AGENTS
from envs.composite import CompositeEpisode
from envs.composite import method_observation_size
from envs.env_arguments import check_action
from envs.env_arguments import choose_target
from envs.env_arguments import explained
from envs.env_arguments import outcome
from envs.env_arguments import read_game
from envs.episode import AGENTS
from envs.episode import Episode
from envs.observation import observation_size
from envs.observation import proposal_size
from envs.rounds import RoundsEpisode

Spaces: TypeAlias = "dict[str, gymnasium.Space[Any]]"


class CompressionEnv(MultiAgentEnv):
    """Find how to prune and quantize every layer of one network, as an RLlib ``MultiAgentEnv``.

    ## Description
    An episode walks through the layers in execution order. At each layer the agent ``pruning``
    decides first and ``precision`` second; only the agent whose turn it is gets an observation.
    The team wants the lowest energy per inference at an accuracy loss of at most the episode's
    target. See docs/environment.md.

    ## Action Space
    | Agent | Space | Meaning |
    |---|---|---|
    | ``pruning`` | ``MultiDiscrete([methods, sparsities])`` | indices of method and sparsity |
    | ``precision`` | ``MultiDiscrete([widths, widths])`` | indices of weight and activation bits |

    ## Observation Space
    ``Box(-1, 1, (OBSERVATION_SIZE,), float32)`` for both agents, the same for every network;
    ``envs.observation.OBSERVATION_NAMES`` and docs/environment.md say what each number is. Where
    the problem has limits, ``LIMIT_NAMES`` follow.

    ## Action Masking
    Where the problem has limits, ``infos[agent]["action_mask"]`` is a bool array of the shape
    ``action_space.nvec``: whether ``mask[tuple(action)]`` leaves a way to hold them.

    ## Rewards
    The change of the score ``-ln(cost_ratio) - 2 ln(max(1, drop / target))`` with the decision,
    given to both agents. Where accuracy is expensive, 0 until the last decision pays it all.

    ## Starting State
    Nothing pruned, every width at 8 bits (or the widest there is). The target is drawn
    log-uniformly, or given: ``reset(options={"target": points})``.

    ## Episode End
    Terminates after the last layer's ``precision`` decision; never truncates. The last ``infos``
    hold, under ``"__common__"``, ``choice``, ``cost_ratio``, ``accuracy_drop``, ``target`` and
    ``score``.

    ## Arguments
    ``config`` has either ``problem`` (CompressionProblem) and ``accuracy`` (AccuracySource), or
    ``task`` and ``accelerator`` by name; and optionally ``targets``, (low, high) in points.

    Raises:
        InputError: a key of ``config`` or of ``options`` is unknown, missing or out of range.
        RuntimeError: something failed inside the environment; the message says what.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        with explained():
            self.game, self.targets = read_game(config or {})
        problem = self.game.problem
        self.observation_spaces, self.action_spaces = self.spaces(
            problem.space.sizes, len(self.game.layers), bool(problem.limits.given)
        )
        self.possible_agents = list(self.action_spaces)
        self.agents = list(self.action_spaces)
        # RLlib seeds an environment once and then resets it without seed: the state lives here.
        self._rng = np.random.default_rng()
        self._episode: Episode | None = None

    @staticmethod
    def spaces(sizes: NDArray[np.int64], layers: int, limited: bool) -> tuple[Spaces, Spaces]:
        """Observation and action spaces of the agents.

        Args:
            sizes: ``SearchSpace.sizes`` of the menus.
            layers: How many are decided about; a walk's spaces do not depend on it.
            limited: Whether the problem has limits.
        """
        pairs = zip(AGENTS, (sizes[:2], sizes[2:]), strict=True)
        actions: Spaces = {agent: gymnasium.spaces.MultiDiscrete(pair) for agent, pair in pairs}
        return dict.fromkeys(actions, _unit_box(observation_size(limited))), actions

    def start(self, targets: NDArray[np.float64]) -> Episode:
        """Episodes of this game side by side, one for every target in points."""
        return Episode(self.game, targets)

    def use(self, accuracy: AccuracySource) -> None:
        """Judge by ``accuracy`` from the next episode on."""
        with explained():
            self.game.use(accuracy)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Start an episode; ``options`` may hold ``target``, in points."""
        with explained():
            if seed is not None:
                self._rng = np.random.default_rng(seed)
            target = choose_target(self._rng, self.targets, options)
            episode = self._episode = self.start(np.array([target]))
            return {episode.agent: episode.observe()[0]}, _infos(episode)

    def step(
        self, action_dict: Mapping[str, NDArray[Any]]
    ) -> tuple[
        dict[str, NDArray[np.float32]],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, Any],
    ]:
        """Take the action of the agent whose turn it is."""
        episode = self._episode
        if episode is None or episode.is_done:
            raise RuntimeError("call reset() before step()")
        with explained():
            agent = episode.agent
            action = check_action(self.action_spaces[agent], action_dict.get(agent))
            reward = float(episode.decide(action[None])[0])
            over = episode.is_done
            observations = {} if over else {episode.agent: episode.observe()[0]}
            infos = _infos(episode)
        # The agent that waits is paid too: a team shares what its last action led to.
        rewards = dict.fromkeys(self.possible_agents, reward)
        return observations, rewards, {"__all__": over}, {"__all__": False}, infos


class CompositeEnv(CompressionEnv):
    """The same game with the decisions split as in the published composite agent.

    ## Description
    At each layer the agent ``amounts`` decides first how much to prune and how wide numbers are,
    and ``method`` second what is pruned by which criterion. All else is as in
    ``CompressionEnv``.

    ## Action Space
    | Agent | Space | Meaning |
    |---|---|---|
    | ``amounts`` | ``Box(-1, 1, (3,), float32)`` | sparsity, weight bits, activation bits: from the
    least to the most of the menu, of which the nearest entry is taken |
    | ``method`` | ``Discrete(methods)`` | index of the method |

    ## Observation Space
    ``amounts`` sees what the agents of ``CompressionEnv`` see; ``method`` sees the same and the
    amounts of this layer. Actions are not masked.

    ## Rewards
    As in ``CompressionEnv``; the decision of ``method`` pays for the layer.
    """

    @staticmethod
    def spaces(sizes: NDArray[np.int64], layers: int, limited: bool) -> tuple[Spaces, Spaces]:
        amounts, method = COMPOSITE_AGENTS
        seen = _unit_box(observation_size(limited))
        return (
            {amounts: seen, method: _unit_box(method_observation_size(limited))},
            {amounts: _unit_box(len(AMOUNTS)), method: gymnasium.spaces.Discrete(int(sizes[0]))},
        )

    def start(self, targets: NDArray[np.float64]) -> CompositeEpisode:
        return CompositeEpisode(self.game, targets)


class RoundsEnv(CompressionEnv):
    """The same game with whole configurations, refined in a few rounds.

    ## Description
    In each of ``envs.rounds.ROUNDS`` rounds the agent ``pruning`` decides about all layers at
    once, and then ``precision`` does; both see what the whole configuration costs, and what they
    decide replaces what they had decided in the round before. Layers that are pinned are neither
    decided nor seen.

    ## Action Space
    | Agent | Space | Meaning |
    |---|---|---|
    | ``pruning`` | ``MultiDiscrete([methods, sparsities] * layers)`` | indices, layer by layer |
    | ``precision`` | ``MultiDiscrete([widths, widths] * layers)`` | indices, layer by layer |

    ## Observation Space
    ``Box(-1, 1, (layers, PROPOSAL_SIZE), float32)`` for both agents: a row for every layer, which
    ``envs.observation.PROPOSAL_NAMES`` and docs/environment.md explain. Where the problem has
    limits, ``LIMIT_NAMES`` follow; actions are not masked.

    ## Rewards, Starting State, Episode End
    As in ``CompressionEnv``; an episode has two decisions a round.
    """

    @staticmethod
    def spaces(sizes: NDArray[np.int64], layers: int, limited: bool) -> tuple[Spaces, Spaces]:
        pairs = zip(AGENTS, (sizes[:2], sizes[2:]), strict=True)
        actions: Spaces = {
            agent: gymnasium.spaces.MultiDiscrete(np.tile(pair, layers)) for agent, pair in pairs
        }
        return dict.fromkeys(actions, _unit_box(layers, proposal_size(limited))), actions

    def start(self, targets: NDArray[np.float64]) -> RoundsEpisode:
        return RoundsEpisode(self.game, targets)


def _infos(episode: Episode) -> dict[str, Any]:
    """The mask of the agent whose turn it is, or what came of the walk."""
    if episode.is_done:
        return {"__common__": outcome(episode)}
    mask = episode.action_mask()
    return {} if mask is None else {episode.agent: {"action_mask": mask[0]}}


def _unit_box(*shape: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(-1.0, 1.0, shape, np.float32)
