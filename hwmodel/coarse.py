"""The coarse level: what a candidate asks for, whatever array computes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.errors import InputError
from hwmodel.states import LayerStates
from hwmodel.technology import Array
from hwmodel.technology import bitmask_bits
from hwmodel.technology import round_up_bits

BOPS_CONVENTION = "effective_macs * weight_bits * activation_bits"
"""Bit operations as in DJPQ and Bayesian Bits, not the convention that is linear in bits."""


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
        bops: Bit operations, by ``BOPS_CONVENTION``, at the widths asked for.
        input_words, output_words: Values of the two feature maps, padding not included.
        weight_bits, activation_bits, output_bits: Widths rounded up to supported ones.
        stored_weight_bits, buffered_weight_bits: Average bits of a weight in DRAM and buffer.
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
    bops: Array
    input_words: Array
    output_words: Array
    weight_bits: Array
    activation_bits: Array
    output_bits: Array
    stored_weight_bits: Array
    buffered_weight_bits: Array

    @property
    def weight_bytes(self) -> Array:
        """Weights as stored: the model's size."""
        return self.weights * self.stored_weight_bits / 8

    @property
    def activation_bytes(self) -> Array:
        """Input and output feature map."""
        inputs = self.input_words * self.activation_bits
        return (inputs + self.output_words * self.output_bits) / 8


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

    weight, activation = accelerator.sparsity.weight, accelerator.sparsity.input
    gates_weight, gates_input = weight.zeros == "gating", activation.zeros == "gating"
    active_macs = effective_macs if gates_weight else macs
    if gates_input:
        active_macs = active_macs * states.activation_density

    precision = accelerator.precision
    features = precision.activation_bits
    weight_bits = round_up_bits("states.weight_bits", states.weight_bits, precision.weight_bits)
    compressed_bits = weight_bits
    if weight.format == "bitmask":
        compressed_bits = bitmask_bits(weight_bits, states.weight_density)

    def stored_bits(role: str) -> Array:
        held = {memory.name for memory in accelerator.holding(role, "weight")}
        return compressed_bits if held & set(weight.compressed_in) else weight_bits

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
        active_macs=active_macs,
        weight_flags=macs if gates_weight else 0.0,
        input_flags=macs if gates_input else 0.0,
        bops=effective_macs * states.weight_bits * states.activation_bits,
        input_words=in_channels * shapes.in_pixels,
        output_words=out_channels * shapes.out_pixels,
        weight_bits=weight_bits,
        activation_bits=round_up_bits("states.activation_bits", states.activation_bits, features),
        output_bits=round_up_bits("states.output_bits", states.output_bits, features),
        stored_weight_bits=stored_bits("dram"),
        buffered_weight_bits=stored_bits("buffer"),
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
