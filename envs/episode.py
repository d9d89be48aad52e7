"""The walk through the layers, many walks at a time: what is decided, seen and earned."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from envs.accuracy import AccuracySource
from envs.completions import Completions
from envs.completions import least_excessive
from envs.limits import excess
from envs.observation import Observer
from envs.prices import LayerPrices
from envs.problem import CompressionProblem
from envs.space import ACTIVATION_BITS
from envs.space import METHOD
from envs.space import SPARSITY
from envs.space import WEIGHT_BITS
from envs.space import SearchSpace
from hwmodel.errors import InputError

AGENTS: Final = ("pruning", "precision")
"""Who decides, in turn, about every layer."""
COLUMNS: Final = (slice(0, WEIGHT_BITS), slice(WEIGHT_BITS, None))
"""Columns of a choice that each agent decides about."""
TARGETS: Final = (0.2, 10.0)
"""Range of accuracy-drop limits, in points, that episodes draw from (log-uniform)."""
PENALTY: Final = 2.0
"""Loss of score for every factor of e by which the drop exceeds its target, or a cost its limit."""
LEAST_RATIO: Final = 1e-3
"""Cost ratios below this count as this."""


def score(
    cost_ratio: NDArray[np.float64],
    accuracy_drop: NDArray[np.float64],
    target: NDArray[np.float64],
    over_limits: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """What a configuration is worth: ``-ln(cost_ratio) - 2 * ln(max(1, drop / target))``.

    Saving a tenth of the cost is worth the same everywhere, and so is exceeding the target by
    a tenth. The penalty outweighs what such an excess can save. Costs that exceed their limits
    count as the drop does. Bounded, since ratios are at least 0.001 and drops at most 100 points.

    Args:
        cost_ratio: Cost by the problem's objective over that of the start, (candidates,).
        accuracy_drop: In points, (candidates,).
        target: Accepted drop in points, > 0, (candidates,).
        over_limits: See :func:`envs.limits.excess`, (candidates,).
    """
    penalty = drop_penalty(accuracy_drop, target) + PENALTY * over_limits
    return -np.log(np.maximum(cost_ratio, LEAST_RATIO)) - penalty


def drop_penalty(
    accuracy_drop: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What a drop takes from the score, ``2 * ln(max(1, drop / target))``, (candidates,).

    Args:
        accuracy_drop: In points, (candidates,); NaN where it is not known, as is the penalty then.
        target: Accepted drop in points, > 0, (candidates,).
    """
    return PENALTY * np.log(np.clip(accuracy_drop, target, np.maximum(100.0, target)) / target)


class Game:
    """The rules of one problem: everything that stays the same from episode to episode.

    Args:
        problem: The network, the accelerator and the space.
        accuracy: Judges configurations: after every decision where it is cheap, else at the end.

    Raises:
        InputError: every layer is pinned, so there is nothing to decide, or the hardware model's
            level does not know what the objective counts.
    """

    def __init__(self, problem: CompressionProblem, accuracy: AccuracySource) -> None:
        space = problem.space
        self.problem = problem
        self.layers = [i for i, name in enumerate(space.layers) if name not in space.pinned]
        if not self.layers:
            raise InputError("space.pinned", sorted(space.pinned), "leave a layer to decide about")
        self.start_choice = start_choice(space)
        start = problem.cost(self.start_choice[None])
        self.start_cost = float(problem.objective.cost(start)[0])
        if not self.start_cost > 0:  # True for NaN too
            raise InputError("level", problem.level, "use a level that prices what is minimized")
        self.prices = LayerPrices(problem)
        self.completions = Completions(problem, self.prices) if problem.limits.given else None
        self.is_filter = np.array([method.granularity == "filter" for method in space.methods])
        self.leaders = [space.leader(layer) for layer in range(len(space.layers))]
        self.followers = {
            leader: [
                layer
                for layer, name in enumerate(space.layers)
                if self.leaders[layer] == leader != layer and name not in space.pinned
            ]
            for leader in set(self.leaders) - {-1}
        }
        self.use(accuracy)

    def use(self, accuracy: AccuracySource) -> None:
        """Judge by ``accuracy`` from the next episode on."""
        self.accuracy = accuracy
        self.observer = Observer(self.problem, accuracy, self.prices, self.start_choice)


class Episode:
    """Walks through the layers of one problem, side by side, each with its own target.

    At every layer that is not pinned the ``pruning`` agent picks (method, sparsity) and then the
    ``precision`` agent (weight width, activation width), as indices into the menus of the
    space. Layers not decided yet stand at the start: dense, at 8 bits or at the widest width of
    the menu. What a group's leader removes, its followers remove too, at once.

    Args:
        game: The rules.
        targets: Accepted accuracy drop of every walk, in points, > 0, shape (candidates,).

    Attributes:
        choices: What stands so far, canonical, (candidates, layers, 4).
        score: Of ``choices``, (candidates,); exact after the last decision.
        cost_ratio: Cost by the problem's objective over that of the start, (candidates,); exact
            after the last decision.
        accuracy_drop: In points, (candidates,); 0 before the last decision where it is expensive.
        over_limits: How far costs exceed their limits, see :func:`envs.limits.excess`,
            (candidates,); exact after the last decision.
    """

    def __init__(self, game: Game, targets: NDArray[np.float64]) -> None:
        self.targets = np.asarray(targets, dtype=np.float64)
        if self.targets.ndim != 1 or not np.all((self.targets > 0) & np.isfinite(self.targets)):
            raise InputError("target", targets, "use accuracy drops above 0, in points")
        self._game = game
        self._turn = 0
        self._options: tuple[int, NDArray[np.float64]] | None = None
        self.choices = np.repeat(game.start_choice[None], len(self.targets), axis=0)
        self._appraise()

    @property
    def agent(self) -> str:
        """Whose turn it is; the last agent's after the end."""
        return AGENTS[0 if self._turn % 2 == 0 and not self.is_done else 1]

    @property
    def layer(self) -> int:
        """Layer to decide about; the last one after the end."""
        layers = self._game.layers
        return layers[min(self._turn // 2, len(layers) - 1)]

    @property
    def turns(self) -> int:
        """Decisions of an episode, those of all agents together."""
        return len(AGENTS) * len(self._game.layers)

    @property
    def is_done(self) -> bool:
        return self._turn == self.turns

    def observe(self) -> NDArray[np.float32]:
        """What the agent whose turn it is sees, in [-1, 1].

        Shape (candidates, :func:`envs.observation.observation_size`).
        """
        position = min(self._turn // 2, len(self._game.layers) - 1)
        seen = self._game.observer(
            layer=self.layer,
            previous=self._game.layers[position - 1] if position else -1,
            choices=self.choices,
            layer_cost=self._layer_cost,
            undecided=self._game.layers[self._turn // 2 :],
            start_cost=self._game.start_cost,
            drop=self.accuracy_drop,
            target=self.targets,
        )
        return self._game.observer.with_limits(seen, self._least_usage())

    def action_mask(self) -> NDArray[np.bool_] | None:
        """Which actions of the agent whose turn it is leave a way to hold the limits.

        All that cost the limits least where there is no such action. Never False for an action
        from which a configuration can be reached that holds the limits by the prices of layers.

        Returns:
            By both indices of an action, (candidates, values of the first, values of the second);
            None where there are no limits, and after the end.
        """
        usage = self._option_usage()
        if usage is None:
            return None
        if self._is_pruning_turn:
            over = excess(usage).min(axis=(3, 4))
        else:
            over = excess(self._of_pruning(usage))
        return least_excessive(over)

    def option_mask(self) -> NDArray[np.bool_] | None:
        """As :meth:`action_mask`, of what both agents decide about a layer.

        Returns:
            By the columns of a choice, (candidates, methods, sparsities, weight widths, activation
            widths).
        """
        usage = self._option_usage()
        return None if usage is None else least_excessive(excess(usage))

    def decide(self, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take one agent's actions, (candidates, 2), and pay the team, (candidates,).

        Where accuracy is cheap, every decision earns the change of the score (potential-based
        shaping, Ng et al., ICML 1999), else all is paid at the end. Either way an episode's
        rewards add up to the final score minus that of the start.
        """
        if self._is_pruning_turn:
            self._prune(np.asarray(actions, dtype=np.int64))
        else:
            self.choices[:, self.layer, WEIGHT_BITS:] = actions
        self._turn += 1
        before = self.score
        self._appraise()
        return self.score - before

    def actions_toward(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the agent whose turn it is would do to end with ``choices``.

        Args:
            choices: Canonical, (candidates, layers, 4).

        Returns:
            Actions as :meth:`decide` takes them.
        """
        return choices[:, self.layer, self._columns]

    @property
    def _columns(self) -> slice:
        """Columns of a choice that the agent whose turn it is decides about."""
        return COLUMNS[AGENTS.index(self.agent)]

    @property
    def _is_pruning_turn(self) -> bool:
        return self._turn % 2 == 0

    def _prune(self, actions: NDArray[np.int64]) -> None:
        """Apply pruning actions, (candidates, 2)."""
        game, layer = self._game, self.layer
        wanted = self._effective(actions[:, None])[:, 0]
        self.choices[:, layer, :WEIGHT_BITS] = wanted
        if game.leaders[layer] == layer:
            removes = np.flatnonzero(game.is_filter[wanted[:, METHOD]])
            for follower in game.followers[layer]:
                self.choices[removes, follower, :WEIGHT_BITS] = wanted[removes]

    def _effective(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """What ``SearchSpace.canonical`` would make of pruning actions, (candidates, any, 2)."""
        game, layer = self._game, self.layer
        leader = game.leaders[layer]
        here = self.choices[:, None, layer, :WEIGHT_BITS]
        method, sparsity = actions[..., 0].copy(), actions[..., 1]
        if leader != layer:
            method[game.is_filter[method]] = 0
        wanted = np.stack([method, game.problem.space.nearest_sparsity[method, sparsity]], axis=-1)
        if leader not in (layer, -1):
            follows = game.is_filter[here[..., METHOD]]
            wanted = np.where(follows[..., None], here, wanted)
        return wanted

    def _option_usage(self) -> NDArray[np.float64] | None:
        """The least shares of the limits that are taken in the end, for all options of the layer.

        Returns:
            By the columns of a choice, (candidates, methods, sparsities, weight widths, activation
            widths, limits); None where there are no limits, and after the end.
        """
        game = self._game
        if game.completions is None or self.is_done:
            return None
        layer, sizes = self.layer, game.problem.space.sizes
        if self._options is None or self._options[0] != layer:
            usage = game.completions.option_usage(layer, self.choices, self._layer_usage)
            prunings = np.stack(np.unravel_index(np.arange(usage.shape[1]), sizes[:2]), axis=-1)
            effective = self._effective(np.repeat(prunings[None], len(usage), axis=0))
            index = np.ravel_multi_index((effective[..., 0], effective[..., 1]), sizes[:2])
            usage = np.take_along_axis(usage, index[..., None, None], axis=1)
            self._options = layer, usage.reshape(len(usage), *sizes, usage.shape[-1])
        return self._options[1]

    def _of_pruning(self, options: NDArray[np.float64]) -> NDArray[np.float64]:
        """Those of all options, (candidates, methods, sparsities, ...), that have been decided."""
        method, sparsity = self.choices[:, self.layer, :WEIGHT_BITS].T
        return options[np.arange(len(options)), method, sparsity]

    def _least_usage(self) -> NDArray[np.float64]:
        """Shares of the limits with what is undecided at its cheapest, (candidates, limits)."""
        usage = self._option_usage()
        if usage is None:
            return self._usage
        open_options = usage if self._is_pruning_turn else self._of_pruning(usage)
        return open_options.min(axis=tuple(range(1, open_options.ndim - 1)))

    def _appraise(self) -> None:
        game, final = self._game, self.is_done
        self._layer_cost, self._layer_usage = game.prices.layer_costs(self.choices)
        cost, self._usage = self._layer_cost.sum(axis=1), self._layer_usage.sum(axis=1)
        if final:
            report = game.problem.cost(self.choices)
            cost = game.problem.objective.cost(report)
            self._usage = game.problem.limits.usage(report)
        self.cost_ratio = cost / game.start_cost
        self.over_limits = excess(self._usage)
        if final or game.accuracy.is_cheap:
            self.accuracy_drop = game.accuracy.accuracy_drop(self.choices)
            self.score = score(self.cost_ratio, self.accuracy_drop, self.targets, self.over_limits)
        else:
            self.accuracy_drop = np.zeros(len(self.choices))
            self.score = np.zeros(len(self.choices))


def start_choice(space: SearchSpace) -> NDArray[np.int64]:
    """Nothing pruned, all widths at 8 bits (or the widest there is); shape (layers, 4)."""
    start = np.zeros((len(space.layers), 4), dtype=np.int64)
    columns = ((WEIGHT_BITS, space.weight_bits), (ACTIVATION_BITS, space.activation_bits))
    for column, menu in columns:
        start[:, column] = menu.index(8) if 8 in menu else len(menu) - 1
    start[:, SPARSITY] = 0
    return space.canonical(start)


def draw_target(rng: np.random.Generator, targets: tuple[float, float] = TARGETS) -> float:
    """A target between the two limits, in points, log-uniform."""
    low, high = targets
    return float(low * (high / low) ** rng.random())
