"""The coarse level: what a candidate asks for, whatever array computes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.compression import DENSE
from hwmodel.compression import array_time
from hwmodel.compression import stored_bits
from hwmodel.compression import supported_pattern
from hwmodel.errors import InputError
from hwmodel.parts import Operand
from hwmodel.states import LayerStates
from hwmodel.technology import Array
from hwmodel.technology import round_up_bits
from hwmodel.technology import throughput

BOPS_CONVENTION = "effective_macs * weight_bits * activation_bits"
"""Bit operations as in DJPQ and Bayesian Bits: a multiplier has a cell for every pair of bits."""

BOPS_LINEAR_CONVENTION = "effective_macs * max(weight_bits, activation_bits)"
"""Bit operations as in the code of OBC, which counts 4 for 4 x 4 bits and 8 for 8 x 8."""


@dataclass(frozen=True)
class Demand:
    """Work and storage of every candidate and layer, (candidates, layers) each.

    Attributes:
        in_channels, out_channels: Channels left; both 0 in a layer that lost either side.
        groups: Groups left. A group of one input channel goes with that channel (depthwise).
        group_inputs, group_outputs: Channels left in one group.
        macs, weights: Operations and weights with the channels left, zero weights included.
        effective_macs, parameters: The same without zero weights.
        active_macs: Multiplications that zero gating does not stop.
        weight_flags, input_flags: Bits that say whether an operand is zero, read once for every MAC
            where it is gated.
        lane_products: Products a multiplier finishes in a step, which add into one sum.
        cycles_per_step: Cycles from one step to the next, skipped zeros taken off.
        bops, bops_linear: Bit operations at the widths asked for, by ``BOPS_CONVENTION`` and by
            ``BOPS_LINEAR_CONVENTION``.
        input_words, output_words: Values of the two feature maps, padding not included.
        weight_bits, activation_bits, output_bits: Widths rounded up to supported ones.
        stored_weight_bits, stored_input_bits, stored_output_bits: Average bits of a value in DRAM,
            compressed where the accelerator does and it pays.
        buffered_weight_bits, buffered_input_bits: The same in the buffer.
    """

    in_channels: Array
    out_channels: Array
    groups: Array
    group_inputs: Array
    group_outputs: Array
    macs: Array
    weights: Array
    effective_macs: Array
    parameters: Array
    active_macs: Array
    weight_flags: Array | float
    input_flags: Array | float
    lane_products: Array | float
    cycles_per_step: Array | float
    bops: Array
    bops_linear: Array
    input_words: Array
    output_words: Array
    weight_bits: Array
    activation_bits: Array
    output_bits: Array
    stored_weight_bits: Array
    stored_input_bits: Array
    stored_output_bits: Array
    buffered_weight_bits: Array
    buffered_input_bits: Array

    @property
    def weight_bytes(self) -> Array:
        """Weights as stored: the model's size."""
        return self.weights * self.stored_weight_bits / 8

    @property
    def activation_bytes(self) -> Array:
        """Input and output feature map as stored."""
        inputs = self.input_words * self.stored_input_bits
        return (inputs + self.output_words * self.stored_output_bits) / 8

    @property
    def arithmetic_intensity(self) -> Array:
        """MACs for each byte that must cross DRAM at least once; 0 for a layer that is gone."""
        return self.macs / np.maximum(self.weight_bytes + self.activation_bytes, 1e-300)


@dataclass(frozen=True)
class VectorWork:
    """Operations behind the layers, (candidates, layers) each: see ``VectorUnit``."""

    additions: Array
    multiplications: Array


def vector_work(shapes: Shapes, demand: Demand) -> VectorWork:
    """Additions and multiplications, for each output channel that is left."""
    return VectorWork(
        demand.out_channels * shapes.additions, demand.out_channels * shapes.multiplications
    )


def demand_of(shapes: Shapes, states: LayerStates, accelerator: Accelerator) -> Demand:
    """Price everything that needs no array.

    Raises:
        InputError: the states are not those of this workload, or an operand is too wide.
    """
    _check_states(shapes, states)
    alive = (states.in_channels > 0) & (states.out_channels > 0)
    in_channels = states.in_channels * alive
    out_channels = states.out_channels * alive
    # A group cannot outlive its input channels: of a depthwise layer only those groups are left
    # whose channel is.
    groups = np.maximum(np.minimum(shapes.groups, in_channels), 1)
    group_inputs = in_channels / groups
    weights = out_channels * group_inputs * shapes.kernel
    macs = weights * shapes.out_pixels
    effective_macs = macs * states.weight_density

    precision, zeros = accelerator.precision, accelerator.sparsity
    features = precision.activation_bits
    weight_bits = round_up_bits("states.weight_bits", states.weight_bits, precision.weight_bits)
    activation_bits = round_up_bits("states.activation_bits", states.activation_bits, features)
    output_bits = round_up_bits("states.output_bits", states.output_bits, features)

    pattern = supported_pattern(states, zeros.weight)
    weights_left = {"none": 1.0, "n_m": pattern[0]}.get(zeros.weight.zeros, states.weight_density)
    inputs_left = 1.0 if zeros.input.zeros == "none" else states.activation_density
    products, step_cycles = throughput(precision, weight_bits, activation_bits)
    time = array_time(zeros, states, pattern)

    # What a layer multiplies with fewer bits than another layer asks for is stored with more.
    read_bits = np.maximum(activation_bits, output_bits @ shapes.share)
    read_density = np.where(
        states.output_bits @ shapes.share > states.activation_bits,
        states.output_density @ shapes.share,
        states.activation_density,
    )

    compressed = {
        "weight": stored_bits(weight_bits, states.weight_density, zeros.weight, pattern),
        "input": stored_bits(read_bits, read_density, zeros.input, DENSE),
        "output": stored_bits(output_bits, states.output_density, zeros.input, DENSE),
    }
    dense = {"weight": weight_bits, "input": read_bits, "output": output_bits}

    def held(role: str, operand: Operand) -> Array:
        memory = accelerator.holding(role, operand)
        format_of = zeros.weight if operand == "weight" else zeros.input
        packs = memory is not None and memory.name in format_of.compressed_in
        return (compressed if packs else dense)[operand]

    return Demand(
        in_channels=in_channels,
        out_channels=out_channels,
        groups=groups,
        group_inputs=group_inputs,
        group_outputs=out_channels / groups,
        macs=macs,
        weights=weights,
        effective_macs=effective_macs,
        parameters=weights * states.weight_density,
        active_macs=macs * weights_left * inputs_left,
        weight_flags=macs if zeros.weight.zeros == "gating" else 0.0,
        input_flags=macs if zeros.input.zeros == "gating" else 0.0,
        lane_products=products,
        cycles_per_step=step_cycles * time * accelerator.array.cycles_per_step,
        bops=effective_macs * states.weight_bits * states.activation_bits,
        bops_linear=effective_macs * np.maximum(states.weight_bits, states.activation_bits),
        input_words=in_channels * shapes.in_pixels,
        output_words=out_channels * shapes.out_pixels,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        output_bits=output_bits,
        stored_weight_bits=held("dram", "weight"),
        stored_input_bits=held("dram", "input"),
        stored_output_bits=held("dram", "output"),
        buffered_weight_bits=held("buffer", "weight"),
        buffered_input_bits=held("buffer", "input"),
    )


def _check_states(shapes: Shapes, states: LayerStates) -> None:
    layers = shapes.in_channels.size
    if states.weight_bits.shape[1] != layers:
        allowed = f"give one state for each of {layers} layers"
        raise InputError("states", states.weight_bits.shape, allowed)
    for name, kept, dense in (
        ("in_channels", states.in_channels, shapes.in_channels),
        ("out_channels", states.out_channels, shapes.out_channels),
    ):
        if (kept > dense).any():
            bad = kept[kept > dense][0]
            raise InputError(f"states.{name}", float(bad), "keep at most the layer's channels")
