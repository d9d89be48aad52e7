"""Accuracy lost by any choice, predicted from single-layer errors and corrected by measurements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.options import OptionTable
from envs.space import ACTIVATION_BITS
from envs.space import METHOD
from envs.space import SPARSITY
from envs.space import WEIGHT_BITS

PRIOR_SCALE = 0.2
"""Exponent of accuracy lost per unit of relative output change, before anything was measured."""
COMMON_DEVIATIONS = 1.0
"""Prior standard deviation of the scale common to all layers, relative to its expectation."""
LAYER_DEVIATIONS = 0.6
"""Prior standard deviation of a layer's scale, relative to the common one."""
MODEL_ERROR = 0.2
"""Relative standard deviation of the damage around the additive model: what fits weigh
measurements by, and uncertainties go by until measurements tell it."""
LEAST_MODEL_ERROR = 0.05
USUAL_MEASUREMENTS = 10
"""As many measurements that show the model's error outweigh what was expected of it."""
LINEAR_DAMAGE = 0.2
"""Damage at which the model errs by as much again as it says: the more is lost, the more layers
disturb each other, so what loses many points tells little about what loses one."""
DISCORDANT = 0.03
"""Share of images that compression by a point or so makes right or wrong: paired noise."""
USUAL_IMAGES = 5000
"""Images of a search split, where nobody says."""
USUAL_COUPLING = 70.0
"""Prior of the coupling, which is also its standard deviation: what ResNet-20 shows, where twelve
points are lost at a damage that adds up to eight."""
BOUND_DEVIATIONS = 1.0
"""Between what is expected and the bound that policies are paid by."""
LEAST_ROOM = 0.01
"""Accuracy above chance that a network is taken to have at least."""
MOST_EXPONENT = 6.0
"""Measured exponents beyond it, accuracies at chance, count as this."""


def noise_points(images: int) -> float:
    """Standard deviation of a loss measured on so many images, in points."""
    return float(100.0 * np.sqrt(DISCORDANT / images))


@dataclass(frozen=True)
class LayerDamage:
    """Damage of every option, which adds up over layers; see :class:`AccuracyPredictor`.

    Attributes:
        weight: By layer, method, sparsity and weight width, (L, M, S, W).
        activation: By layer and activation width, (L, A).
    """

    weight: NDArray[np.float64]
    activation: NDArray[np.float64]

    def scaled(
        self, of_weights: NDArray[np.float64], of_inputs: NDArray[np.float64]
    ) -> LayerDamage:
        """With the damage of each layer's weights and input times a factor, (layers,) both."""
        return LayerDamage(
            self.weight * of_weights[:, None, None, None], self.activation * of_inputs[:, None]
        )

    def total(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Damage of canonical choices (candidates, layers, 4), shape (candidates,)."""
        layer = np.arange(choices.shape[-2])
        weight = self.weight[
            layer, choices[..., METHOD], choices[..., SPARSITY], choices[..., WEIGHT_BITS]
        ]
        return (weight + self.activation[layer, choices[..., ACTIVATION_BITS]]).sum(axis=-1)


class AccuracyPredictor:
    """An additive damage model; an ``AccuracySource`` that is cheap.

    Every layer contributes the damage of its weights and of its input,

        damage = sum_l  scale[l, 0] * weight_error[l] * sensitivity[l, 0]
                      + scale[l, 1] * activation_error[l] * sensitivity[l, 1],

    with scales >= 0, and accuracy falls from the reference to chance,

        accuracy = chance + (reference - chance) * exp(-(damage + coupling * damage ** 3)).

    The cube is for layers that disturb each other: it is nothing where a point is lost, and half of
    a loss of twenty. Scales are fitted by non-negative least squares, ridged toward one scale
    common to all; an observation's weight is the inverse variance of its damage, so small losses
    are fitted closely and large ones tell little but of the coupling. The same measurements give
    the same predictor.

    Args:
        table: Errors and sensitivities of every option.
        reference: Accuracy of the uncompressed network, 0..1.
        chance: Accuracy of guessing, 0..1 and below ``reference``.
        images: Images that accuracies are measured on.
    """

    is_cheap = True

    def __init__(
        self,
        table: OptionTable,
        reference: float = 1.0,
        chance: float = 0.0,
        images: int = USUAL_IMAGES,
    ) -> None:
        self.reference = reference
        self.chance = chance
        self._noise_points = noise_points(images)
        # A network no better than guessing has nothing to lose, yet can be searched.
        self._room = max(reference - chance, LEAST_ROOM)
        self._weight_change = table.weight_error * table.sensitivity[:, 0, None, None, None]
        self._activation_change = table.activation_error * table.sensitivity[:, 1, None]
        layers, methods, sparsities, widths = self._weight_change.shape
        self._sizes = sparsities * widths, widths
        self._weight_offset = np.arange(layers) * methods * sparsities * widths
        self._activation_offset = np.arange(layers) * self._activation_change.shape[1]
        self.coupling, self.model_error = USUAL_COUPLING, MODEL_ERROR
        prior = np.full(2 * layers, PRIOR_SCALE)
        self._set_scales(prior, np.diag((COMMON_DEVIATIONS * prior) ** 2))

    def accuracy_drop(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points lost by canonical choices (candidates, layers, 4), shape (candidates,)."""
        return self._drop(self._damage(choices))

    def optimistic_drop(
        self, choices: NDArray[np.int64], deviations: float = 1.0
    ) -> NDArray[np.float64]:
        """As :meth:`accuracy_drop`, with the damage ``deviations`` standard deviations lower."""
        damage = self._damage(choices)
        return self._drop(damage * np.exp(-deviations * self.relative_std(choices)))

    def relative_std(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Standard deviation of the logarithm of the damage, shape (candidates,)."""
        features = self._features(choices)
        variance = ((features @ self._covariance) * features).sum(axis=-1)
        damage = np.maximum(features @ self.scales, 1e-12)
        return np.sqrt(np.minimum(variance / damage**2, 4.0) + self.model_error**2)

    def layer_damage(self, rng: np.random.Generator | None = None) -> LayerDamage:
        """The damage table: the expected one, or one drawn from what measurements leave open."""
        layers = len(self._weight_change)
        scales = self.scales
        if rng is not None:
            scales = np.abs(rng.multivariate_normal(self.scales, self._covariance))
        change = LayerDamage(self._weight_change, self._activation_change)
        return change.scaled(scales[:layers], scales[layers:])

    def fit(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        """Replace what was learnt by what these measurements say.

        Args:
            choices: Canonical, (measurements, layers, 4).
            accuracy: Measured, 0..1, (measurements,).
        """
        if len(choices) == 0:
            return
        kept = (accuracy - self.chance) / self._room
        exponent = -np.log(np.clip(kept, np.exp(-MOST_EXPONENT), None))
        # In points, what noise does to the exponent: d(exponent) = d(accuracy) / (room * kept).
        slope = 100.0 * self._room * np.clip(kept, np.exp(-MOST_EXPONENT), 1.0)
        features, noise = self._features(choices), self._noise_points / slope
        coupling = USUAL_COUPLING
        for _ in range(3):  # the coupling depends on what adds up, and the other way round
            damage = _decoupled(exponent, coupling)
            growth = 1.0 + 3.0 * coupling * damage**2
            scales, covariance = _fit(features, damage, noise / growth)
            coupling = _coupling(features @ scales, exponent, noise)
        self.coupling = coupling
        expected = features @ scales
        growth = 1.0 + 3.0 * coupling * expected**2
        residual = _decoupled(exponent, coupling) - expected
        fitted = ((features @ covariance) * features).sum(axis=-1)
        self.model_error = _model_error(expected, residual**2 + fitted, noise / growth)
        self._set_scales(scales, covariance)

    def _set_scales(self, scales: NDArray[np.float64], covariance: NDArray[np.float64]) -> None:
        layers = len(self._weight_change)
        self.scales = scales
        self._covariance = covariance
        self._weight_damage = self._weight_change.reshape(layers, -1) * scales[:layers, None]
        self._activation_damage = self._activation_change * scales[layers:, None]

    def _index(self, choices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Flat indices of options in the weight and activation tables, (candidates, layers)."""
        weight = choices[..., METHOD] * self._sizes[0] + choices[..., SPARSITY] * self._sizes[1]
        weight += choices[..., WEIGHT_BITS]
        weight += self._weight_offset
        return weight, choices[..., ACTIVATION_BITS] + self._activation_offset

    def _damage(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        weight, activation = self._index(choices)
        damage = self._weight_damage.take(weight) + self._activation_damage.take(activation)
        return damage.sum(axis=-1)

    def _features(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Output change by every layer's weights and input alone, (candidates, 2 * layers)."""
        weight, activation = self._index(choices)
        parts = self._weight_change.take(weight), self._activation_change.take(activation)
        return np.concatenate(parts, axis=-1)

    def _drop(self, damage: NDArray[np.float64]) -> NDArray[np.float64]:
        return -100.0 * self._room * np.expm1(-(damage + self.coupling * damage**3))


class DropBound:
    """What choices may lose by a predictor's word: an ``AccuracySource`` that is cheap.

    Who is paid by it gains nothing by going where the predictor knows little.

    Args:
        predictor: May learn meanwhile.
        deviations: Standard deviations of the damage's logarithm by which it is taken to be above
            what is expected.
    """

    is_cheap = True

    def __init__(self, predictor: AccuracyPredictor, deviations: float = BOUND_DEVIATIONS) -> None:
        self._predictor = predictor
        self._deviations = deviations

    def accuracy_drop(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points lost by canonical choices (candidates, layers, 4) at most, (candidates,)."""
        return self._predictor.optimistic_drop(choices, -self._deviations)


def _decoupled(exponent: NDArray[np.float64], coupling: float) -> NDArray[np.float64]:
    """The damage d with ``d + coupling * d ** 3 = exponent``; negative for negative exponents."""
    if coupling < 1e-6:
        return exponent
    width = np.sqrt(3.0 * coupling)
    return 2.0 / width * np.sinh(np.arcsinh(1.5 * width * exponent) / 3.0)


def _coupling(
    damage: NDArray[np.float64], exponent: NDArray[np.float64], noise: NDArray[np.float64]
) -> float:
    """How much the cube of what adds up is missing, by least squares with its prior; >= 0."""
    cube = damage**3
    growth = 1.0 + 3.0 * USUAL_COUPLING * damage**2
    weight = 1.0 / (noise**2 + (MODEL_ERROR * growth * damage) ** 2 + 1e-12)
    prior = 1.0 / USUAL_COUPLING**2
    wanted = float(weight @ (cube * (exponent - damage))) + prior * USUAL_COUPLING
    return max(0.0, wanted / (float(weight @ cube**2) + prior))


def _fit(
    features: NDArray[np.float64], exponent: NDArray[np.float64], noise: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scales and their covariance.

    Args:
        features: Output change by every part, (measurements, parts).
        exponent: What of the accuracy lost adds up, (measurements,).
        noise: Its standard deviation, (measurements,).
    """
    from scipy.optimize import nnls  # a second that no start waits for

    common = _common_scale(features.sum(axis=1), exponent, noise)
    scales = np.full(features.shape[1], common)
    ridge = np.eye(len(scales)) / (LAYER_DEVIATIONS * common)
    for _ in range(3):  # weights depend on what is predicted
        weight = 1.0 / np.sqrt(_variance(features @ scales, noise))
        left = np.vstack([features * weight[:, None], ridge])
        right = np.concatenate([exponent * weight, ridge @ np.full(len(scales), common)])
        scales, _ = nnls(left, right)
        scales = np.maximum(scales, 1e-3 * common)
    return scales, np.linalg.inv(left.T @ left).astype(np.float64)


def _model_error(
    damage: NDArray[np.float64], squared: NDArray[np.float64], noise: NDArray[np.float64]
) -> float:
    """Relative standard deviation of the damage around the model, by what the fit leaves.

    Each measurement tells of it as far as the error would show beside all else that it varies by.

    Args:
        damage: Expected, (measurements,).
        squared: Squared deviations from it, with the variance that the fit took up.
        noise: Standard deviation of what was measured.
    """
    expected = (MODEL_ERROR * damage) ** 2
    other = _variance(damage, noise) - expected
    weight = (expected / (expected + other)) ** 2
    shown = float(weight @ ((squared - other) / np.maximum(damage, 1e-12) ** 2))
    variance = USUAL_MEASUREMENTS * MODEL_ERROR**2 + shown
    variance /= USUAL_MEASUREMENTS + float(weight.sum())
    return float(np.sqrt(max(variance, LEAST_MODEL_ERROR**2)))


def _common_scale(
    total: NDArray[np.float64], exponent: NDArray[np.float64], noise: NDArray[np.float64]
) -> float:
    """One scale for all layers, by weighted least squares with the prior as one observation."""
    common, prior = PRIOR_SCALE, 1.0 / (COMMON_DEVIATIONS * PRIOR_SCALE) ** 2
    for _ in range(3):
        weight = 1.0 / _variance(common * total, noise)
        wanted = float(weight @ (exponent * total)) + prior * PRIOR_SCALE
        common = wanted / (float(weight @ total**2) + prior)
        common = max(common, 1e-3 * PRIOR_SCALE)
    return common


def _variance(damage: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of measured exponents around predicted ones."""
    return noise**2 + (MODEL_ERROR**2 + (damage / LINEAR_DAMAGE) ** 2) * damage**2
