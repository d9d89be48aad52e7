"""What single settings lose without retraining: one way to compress all layers, test split.

Run: ``python benchmarks/compression.py --network 20`` (CIFAR-10 ResNets 20, 32, 44, 56; 1,024
calibration images; ``--data`` and ``--weights`` as for ``joulecut search``). The table of
docs/compression.md. With ``--patterns`` the other granularities and criteria, at W8A8; with
``--quantizers`` the other quantizers, nothing pruned; with ``--reconstructions`` the output errors
of single layers, pruned and rounded in the other ways, over those of the default, and what networks
lose so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from torch import Tensor

from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import criteria
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.layer_compression import pruned_rows
from envs.layer_compression import rounded_rows
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.reconstruction import output_error
from envs.reconstruction_settings import Reconstruction
from envs.scales import WeightGrid
from envs.setup import prepare_evaluator
from envs.statistics import LayerStatistics
from envs.tasks import load_task
from envs.trace import TracedLayer
from envs.trace import TracedNetwork

REPAIRS = tuple(sorted(get_args(Repair), key=["none", "layerwise", "aligned", "sequential"].index))

SETTINGS: Mapping[str, tuple[float, int, int]] = {
    "W8A8": (0, 8, 8),
    "W6A6": (0, 6, 6),
    "W4A8": (0, 4, 8),
    "W4A4": (0, 4, 4),
    "50 % + W8A8": (0.5, 8, 8),
    "60 % + W8A8": (0.6, 8, 8),
    "70 % + W8A8": (0.7, 8, 8),
    "50 % + W4A6": (0.5, 4, 6),
}
"""Element sparsity, weight bits, activation bits of every layer."""

PATTERNS = (("n:4", 0.5), ("n:8", 0.5), ("1x4", 0.5), ("4x1", 0.5), ("kernel", 0.3))

QUANTIZERS: Mapping[str, Quantizer] = {
    "default": Quantizer(),
    "activations: max_abs": Quantizer(activation_range="max_abs"),
    "activations: percentile:99.9": Quantizer(activation_range="percentile:99.9"),
    "activations: kl": Quantizer(activation_range="kl"),
    "activations: symmetric": Quantizer(activation_symmetry="symmetric"),
    "weights: max_abs": Quantizer(weight_range="max_abs"),
    "weights: percentile:99": Quantizer(weight_range="percentile:99"),
    "weights: tensor": Quantizer(weight_granularity="tensor"),
    "weights: tensor, kl": Quantizer(weight_granularity="tensor", weight_range="kl"),
    "weights: group:16": Quantizer(weight_granularity="group:16"),
    "weights: group:4": Quantizer(weight_granularity="group:4"),
    "power_of_two": Quantizer(scale="power_of_two"),
    "power_of_two, weights: tensor": Quantizer(scale="power_of_two", weight_granularity="tensor"),
}

PRUNINGS = ("approximate", "exact")
ROUNDINGS = ("gptq", "exact", "adaround")
PRUNED, ROUNDED = (0.5, 0.7), (4, 3, 2)

Rows = dict[str, dict[str, LayerDecision]]


def element_rows(network: TracedNetwork) -> Rows:
    """Every setting by magnitude and by second order, and some with 8-bit images or wide ends."""
    rows: Rows = {}
    for name, (sparsity, weight_bits, activation_bits) in SETTINGS.items():
        for criterion in ("l1", "second_order") if sparsity else ("none",):
            decision = LayerDecision(
                "element" if sparsity else "none", criterion, sparsity, weight_bits, activation_bits
            )
            label = f"{name}, {criterion}" if sparsity else name
            rows[label] = dict.fromkeys(network.names, decision)
    first, last = network.names[0], network.names[-1]
    image = replace(rows["W4A4"][first], activation_bits=8)
    rows["W4A4, image at 8 bits"] = {**rows["W4A4"], first: image}
    ends = dict.fromkeys((first, last), rows["W8A8"][first])
    rows["W4A4, first and last layer at 8 bits"] = {**rows["W4A4"], **ends}
    return rows


def structured_rows(network: TracedNetwork, *, all_patterns: bool) -> Rows:
    """2:4 and 20 % of the filters of uncoupled layers; or all patterns and criteria."""
    rows: Rows = {}
    for granularity, sparsity in PATTERNS if all_patterns else PATTERNS[:1]:
        for criterion in ("l1", "second_order"):
            decision = LayerDecision(granularity, criterion, sparsity, 8, 8)
            label = f"{granularity} {sparsity:.0%} + W8A8, {criterion}"
            rows[label] = dict.fromkeys(network.names, decision)
            if granularity.startswith("n:"):
                whole = {
                    layer.name: decision if layer.shape.in_channels % 4 == 0 else _plain()
                    for layer in network.layers
                }
                rows[f"{label}, not the first layer"] = whole
    groups = network.units.group
    for criterion in criteria("filter") if all_patterns else ("l2", "taylor", "reconstruction"):
        decision = LayerDecision("filter", criterion, 0.2, 8, 8)
        rows[f"filters 20 % + W8A8, {criterion}"] = {
            name: decision if group >= 0 and groups.count(group) == 1 else _plain()
            for name, group in zip(network.names, groups, strict=True)
        }
    return rows


def _plain() -> LayerDecision:
    return LayerDecision(weight_bits=8, activation_bits=8)


def report(
    evaluator: Evaluator, rows: Rows, repairs: tuple[Repair, ...], quantizer: Quantizer
) -> None:
    dense = evaluator.evaluate(uniform(evaluator.compressor.network.names, 32), "test").accuracy
    print(f"fp32: {100 * dense:.2f} %. Points lost:")
    print(f"| {'setting':42} | " + " | ".join(f"{repair:>10}" for repair in repairs) + " |")
    print("|---" * (len(repairs) + 1) + "|")
    for label, layers in rows.items():
        cells = []
        for repair in repairs:
            accuracy = evaluator.evaluate(
                CompressionConfig(layers, repair, quantizer), "test"
            ).accuracy
            cells.append(f"{100 * (dense - accuracy):10.2f}")
        print(f"| {label:42} | " + " | ".join(cells) + " |", flush=True)


def report_quantizers(evaluator: Evaluator, repairs: tuple[Repair, ...]) -> None:
    names = evaluator.compressor.network.names
    dense = evaluator.evaluate(uniform(names, 32), "test").accuracy
    print(f"fp32: {100 * dense:.2f} %. Points lost:")
    columns = [(setting, repair) for setting in ("W8A8", "W4A8", "W4A4") for repair in repairs]
    print(f"| {'quantizer':30} | " + " | ".join(f"{a}, {b}" for a, b in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for label, quantizer in QUANTIZERS.items():
        cells = []
        for setting, repair in columns:
            _, weight_bits, activation_bits = SETTINGS[setting]
            decision = LayerDecision(weight_bits=weight_bits, activation_bits=activation_bits)
            config = CompressionConfig(dict.fromkeys(names, decision), repair, quantizer)
            accuracy = evaluator.evaluate(config, "test").accuracy
            cells.append(f"{100 * (dense - accuracy):{len(f'{setting}, {repair}')}.2f}")
        print(f"| {label:30} | " + " | ".join(cells) + " |", flush=True)


def report_reconstructions(network: TracedNetwork, statistics: Sequence[LayerStatistics]) -> None:
    """Errors of the outputs of all layers over those of the default: mean and range."""
    pairs = list(zip(network.layers, statistics, strict=True))

    def pruned(layer: TracedLayer, seen: LayerStatistics, kind: str) -> Tensor:
        settings = Reconstruction(pruning=kind)
        return pruned_rows(
            layer, seen, "element", "second_order", PRUNED, None, "layerwise", settings
        )

    def rounded(layer: TracedLayer, seen: LayerStatistics, kind: str) -> Tensor:
        find, settings = WeightGrid.of(layer, DEFAULT_QUANTIZER).find, Reconstruction(rounding=kind)
        rows = layer.rows[None]
        return rounded_rows(seen, rows, ROUNDED, None, "layerwise", find, settings)[0][0]

    tables = (
        ("pruning", PRUNINGS, pruned, [f"{sparsity:.0%}" for sparsity in PRUNED]),
        ("rounding", ROUNDINGS, rounded, [f"{bits} bits" for bits in ROUNDED]),
    )
    for name, kinds, compress, columns in tables:
        print(
            f"| {name:12} | "
            + " | ".join(f"{column:>16}" for column in columns)
            + " | CPU seconds |"
        )
        print("|---" * (len(columns) + 2) + "|")
        default = None
        for kind in kinds:
            start = time.process_time()
            found = [compress(layer, seen, kind) for layer, seen in pairs]
            seconds = time.process_time() - start
            errors = np.array(
                [
                    output_error(rows - layer.rows, seen.second_moment, layer.rows).numpy()
                    for rows, (layer, seen) in zip(found, pairs, strict=True)
                ]
            )
            default = errors if default is None else default
            ratios = errors / default
            cells = [
                f"{np.exp(np.log(ratio).mean()):.3f} ({ratio.min():.2f}-{ratio.max():.2f})"
                for ratio in ratios.T
            ]
            print(f"| {kind:12} | " + " | ".join(f"{cell:>16}" for cell in cells), end="")
            print(f" | {seconds:11.0f} |", flush=True)


def report_reconstructed_networks(evaluator: Evaluator) -> None:
    """Points lost where all layers are pruned, or rounded, in one way; repair ``aligned``."""
    names = evaluator.compressor.network.names
    dense = evaluator.evaluate(uniform(names, 32), "test").accuracy
    pruned = LayerDecision("element", "second_order", PRUNED[-1], 8, 8)
    decisions: dict[str, tuple[LayerDecision, str, Sequence[str]]] = {
        f"{PRUNED[-1]:.0%} + W8A8": (pruned, "pruning", PRUNINGS)
    }
    for bits in ROUNDED:
        rounded = LayerDecision(weight_bits=bits, activation_bits=8)
        decisions[f"W{bits}A8"] = rounded, "rounding", ROUNDINGS
    for label, (decision, field, kinds) in decisions.items():
        lost = []
        for kind in kinds:
            settings = Reconstruction(**{field: kind})
            config = CompressionConfig(dict.fromkeys(names, decision), reconstruction=settings)
            accuracy = evaluator.evaluate(config, "test").accuracy
            lost.append(f"{kind} {100 * (dense - accuracy):.2f}")
        print(f"{label}: points lost by {field}: {', '.join(lost)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", type=int, default=20, help="depth of the CIFAR-10 ResNet")
    parser.add_argument("--data", help="folder of the data; downloaded by default")
    parser.add_argument("--weights", help="checkpoint; downloaded by default")
    parser.add_argument("--patterns", action="store_true", help="other granularities and criteria")
    parser.add_argument("--quantizers", action="store_true", help="other quantizers")
    parser.add_argument("--reconstructions", action="store_true", help="other reconstructions")
    parser.add_argument("--placement", default="fused", help="of roundings: fused or per-layer")
    parser.add_argument("--repairs", nargs="+", choices=REPAIRS, default=REPAIRS)
    arguments = parser.parse_args()
    name = f"cifar10-resnet{arguments.network}"
    task = load_task(name, data=arguments.data, weights=arguments.weights)
    start = time.perf_counter()
    evaluator = prepare_evaluator(task)
    if arguments.quantizers:
        report_quantizers(evaluator, tuple(arguments.repairs))
        print(f"{time.perf_counter() - start:.0f} s")
        return
    network = evaluator.compressor.network
    if arguments.reconstructions:
        report_reconstructions(network, evaluator.compressor.statistics)
        report_reconstructed_networks(evaluator)
        return
    rows = structured_rows(network, all_patterns=arguments.patterns)
    if not arguments.patterns:
        rows = {**element_rows(network), **rows}
    quantizer = Quantizer(activation_placement=arguments.placement)
    report(evaluator, rows, tuple(arguments.repairs), quantizer)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
