"""How a layer is cut into the processing passes of a row-stationary array (``_passes``).

The paper's mappings of AlexNet (Chen et al., JSSC 2017; its parameters m, n, e, p, q, r, t) are
found, or ones as good, by taking among all that fit those of about the least DRAM traffic and then
of least time. Compressed formats have no part in that: mappings are made before the data are known.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from hwmodel._loading import pass_cycles
from hwmodel._row_stationary import Elements
from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.errors import InputError
from hwmodel.technology import Array

INDIFFERENT_TRAFFIC = 0.05
"""Share of the least DRAM traffic that time is worth: without it a layer may take seven times the
cycles to save 2 % of its traffic. The paper's mappings are those found with 0 as well."""
CHUNK = 2048
"""Layers mapped at once: bounds the memory that trying all choices takes."""


@dataclass(frozen=True)
class _Choices:
    """What a pass may take, (choices, layers); a layer with fewer choices repeats one."""

    images: Array
    strip: Array
    channels: Array
    stacked: Array
    parallel: Array


@dataclass(frozen=True)
class _Chip:
    """The accelerator in bits and bits per cycle."""

    elements: Elements
    bank_bits: int
    banks: int
    weight_buffer_bits: float
    weight_bus: float
    input_bus: float
    sum_bus: float
    sum_bits: int

    @classmethod
    def of(cls, accelerator: Accelerator) -> _Chip:
        buffer = accelerator.holding("buffer", "output")
        weight_buffer = accelerator.holding("buffer", "weight")
        network = accelerator.array_network
        assert buffer and weight_buffer and network  # checked when the accelerator was made
        bank_bytes = buffer.bank_bytes or 1
        return cls(
            elements=Elements.of(accelerator),
            bank_bits=8 * bank_bytes,
            banks=int(buffer.capacity_bits("output") // (8 * bank_bytes)),
            weight_buffer_bits=weight_buffer.capacity_bits("weight"),
            weight_bus=8 * network.bytes_per_cycle["weight"],
            input_bus=8 * network.bytes_per_cycle["input"],
            sum_bus=8 * network.bytes_per_cycle["output"],
            sum_bits=accelerator.precision.accumulator_bits,
        )


@dataclass(frozen=True)
class _Layer:
    """Layers to map, (layers,); of one group."""

    index: Array
    group_inputs: Array
    group_outputs: Array
    input_bits: Array
    weight_bits: Array


@dataclass(frozen=True)
class PassMapping:
    """How layers run; ``turns`` follow each other and ``blocks`` are those that share inputs.

    Attributes:
        images, strip, channels, stacked, parallel: As in ``_Choices``.
        filters: Filters in one set.
        blocks: Blocks of filters whose sums fit the buffer together.
        filter_turns, channel_turns: Passes over all filters and over all channels.
        strips, image_turns: Passes over all rows of outputs and over all images.
        rows: Input rows fetched, with the overlap of strips, for each block.
        chain: Elements of a set that add up; a taller kernel folds.
        pass_cycles: Cycles of one pass.
    """

    images: Array
    strip: Array
    channels: Array
    stacked: Array
    parallel: Array
    filters: Array
    blocks: Array
    filter_turns: Array
    channel_turns: Array
    strips: Array
    image_turns: Array
    rows: Array
    chain: Array
    pass_cycles: Array

    @property
    def cycles(self) -> Array:
        """Cycles of one group."""
        passes = self.filter_turns * self.channel_turns * self.strips * self.image_turns
        return passes * self.pass_cycles


def pass_mapping(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> PassMapping:
    """The mapping of every candidate and layer, (candidates, layers).

    Raises:
        InputError: the inputs and sums of the smallest possible pass do not fit the buffer.
    """
    chip = _Chip.of(accelerator)
    size = demand.macs.shape
    columns = [
        np.broadcast_to(column, size).ravel()
        for column in (
            np.arange(size[1], dtype=np.float64),
            np.maximum(demand.group_inputs, 1),
            np.maximum(demand.group_outputs, 1),
            demand.activation_bits,
            demand.weight_bits,
        )
    ]
    # Candidates share most of their layers: map each different one once.
    key = np.zeros(columns[0].size, dtype=np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        key = key * values.size + code
    _, first, where = np.unique(key, return_index=True, return_inverse=True)
    different = [column[first] for column in columns]
    mapped = [
        _map_layers(shapes, _Layer(*(part[start : start + CHUNK] for part in different)), chip)
        for start in range(0, first.size, CHUNK)
    ]
    return PassMapping(
        **{
            item.name: np.concatenate([getattr(part, item.name) for part in mapped])[
                where.reshape(size)
            ]
            for item in fields(PassMapping)
        }
    )


def pass_choices(
    shapes: Shapes, demand: Demand, accelerator: Accelerator, index: int
) -> PassMapping:
    """The mappings of one layer of one candidate that are worth it, (choices, 1).

    Args:
        shapes: All layers.
        demand: Of that layer alone, (1, 1).
        accelerator: The accelerator.
        index: Which layer.

    Raises:
        InputError: the inputs and sums of the smallest possible pass do not fit the buffer.
    """
    columns = (demand.group_inputs, demand.group_outputs, demand.activation_bits,
               demand.weight_bits)  # fmt: skip
    layer = _Layer(np.array([float(index)]), *(column.ravel() for column in columns))
    mapping, worth, _ = _worth_it(shapes, layer, _Chip.of(accelerator))
    rows = np.flatnonzero(worth[:, 0])
    return PassMapping(*(getattr(mapping, item.name)[rows] for item in fields(PassMapping)))


def _map_layers(shapes: Shapes, layer: _Layer, chip: _Chip) -> PassMapping:
    """The best choice for each layer, (layers,)."""
    mapping, worth, buffer_bits = _worth_it(shapes, layer, chip)
    for key in (mapping.cycles, buffer_bits):
        wanted = np.where(worth, key, np.inf)
        worth &= wanted <= wanted.min(axis=0)
    best = worth.argmax(axis=0), np.arange(layer.index.size)
    return PassMapping(*(getattr(mapping, item.name)[best] for item in fields(PassMapping)))


def _worth_it(
    shapes: Shapes, layer: _Layer, chip: _Chip
) -> tuple[PassMapping, NDArray[np.bool_], Array]:
    """Every choice of every layer, (choices, layers): which are worth it, and bits at the buffer.

    Worth it are those that fit and have about the least DRAM traffic.
    """
    index = layer.index.astype(np.intp)
    every = _choices(shapes, chip.elements)
    choice = _Choices(*(getattr(every, item.name)[:, index] for item in fields(_Choices)))
    mapping, dram_bits, buffer_bits = _evaluate(shapes, layer, choice, chip)
    if not np.isfinite(dram_bits).any(axis=0).all():
        lost = int(index[~np.isfinite(dram_bits).any(axis=0)][0])
        width = int(shapes.input_row[lost])
        allowed = "its inputs and sums must fit the buffer's banks"
        raise InputError(f"layers[{lost}].width", width, allowed)
    worth = dram_bits <= dram_bits.min(axis=0) * (1 + INDIFFERENT_TRAFFIC)
    return mapping, worth, buffer_bits


def _evaluate(
    shapes: Shapes, layer: _Layer, choice: _Choices, chip: _Chip
) -> tuple[PassMapping, Array, Array]:
    """Every choice of every layer, (choices, layers), with its bits at DRAM and at the buffer.

    DRAM bits are infinite where inputs and sums do not fit the buffer.
    """
    index = layer.index.astype(np.intp)
    height, kernel_width = shapes.kernel_height[index], shapes.kernel_width[index]
    out_height, out_width = shapes.out_height[index], shapes.out_width[index]
    stride, reach = shapes.row_stride[index], shapes.row_reach[index]
    row_words = shapes.input_row[index]
    kernel_folds = np.ceil(height / chip.elements.rows)
    chain = np.ceil(height / kernel_folds)

    strips = np.ceil(out_height / choice.strip)
    image_turns = np.ceil(shapes.batch[index] / choice.images)
    rows = (choice.strip - 1) * stride + reach
    side_by_side = np.minimum(choice.channels * choice.stacked, layer.group_inputs)
    channels = np.ceil(side_by_side / choice.stacked)
    channel_turns = kernel_folds * np.ceil(layer.group_inputs / side_by_side)
    input_bits = choice.images * side_by_side * rows * row_words * layer.input_bits

    sum_banks = chip.banks - np.ceil(input_bits / chip.bank_bits)
    one_filter_bits = choice.images * choice.strip * out_width * chip.sum_bits
    fitting = np.floor(np.maximum(sum_banks, 0) * chip.bank_bits / one_filter_bits)
    blocks = np.ceil(layer.group_outputs / np.maximum(fitting, 1))
    block = np.ceil(layer.group_outputs / blocks)
    held = np.floor(chip.elements.filter_words / (channels * kernel_width))
    set_bits = side_by_side * chain * kernel_width * layer.weight_bits * choice.parallel
    held = np.minimum(held, np.floor(chip.weight_buffer_bits / set_bits))
    held = held.clip(min=1, max=chip.elements.partial_sum_words)
    block_turns = np.ceil(block / (held * choice.parallel))
    filters = np.ceil(block / (block_turns * choice.parallel))

    at_work = np.minimum(filters * choice.parallel, block)
    weight_bits = at_work * side_by_side * chain * kernel_width * layer.weight_bits
    window_bits = rows * kernel_width * side_by_side * layer.input_bits
    sum_bits = choice.images * at_work * choice.strip * out_width * chip.sum_bits
    one_pass = pass_cycles(
        computing=choice.images * out_width * filters * channels * kernel_width,
        weight_load=weight_bits / chip.weight_bus,
        window_load=window_bits / chip.input_bus,
        input_load=input_bits / chip.input_bus,
        sum_transfer=sum_bits / chip.sum_bus,
    )
    overlap = np.maximum(reach - stride, 0)
    mapping = PassMapping(
        images=choice.images,
        strip=choice.strip,
        channels=channels,
        stacked=choice.stacked,
        parallel=choice.parallel,
        filters=filters,
        blocks=blocks,
        filter_turns=blocks * block_turns,
        channel_turns=channel_turns,
        strips=strips,
        image_turns=image_turns,
        rows=(out_height - 1) * stride + reach + (strips - 1) * overlap,
        chain=np.broadcast_to(chain, strips.shape),
        pass_cycles=one_pass,
    )
    map_words = layer.group_inputs * mapping.rows * row_words * shapes.batch[index]
    weights = layer.group_outputs * layer.group_inputs * shapes.kernel[index]
    dram_bits = map_words * blocks * layer.input_bits
    dram_bits += weights * strips * image_turns * layer.weight_bits
    buffer_bits = map_words * mapping.filter_turns * layer.input_bits
    sums = layer.group_outputs * shapes.out_pixels[index] * chip.sum_bits
    buffer_bits += 2 * sums * channel_turns
    return mapping, np.where(fitting >= 1, dram_bits, np.inf), buffer_bits


@functools.lru_cache(maxsize=64)
def _choices(shapes: Shapes, elements: Elements) -> _Choices:
    each = [_layer_choices(shapes, elements, layer) for layer in range(shapes.kernel.size)]
    longest = max(map(len, each))
    padded = np.array([rows + rows[-1:] * (longest - len(rows)) for rows in each], dtype=float)
    return _Choices(*np.moveaxis(padded, (0, 1, 2), (2, 1, 0)))


def _layer_choices(
    shapes: Shapes, elements: Elements, layer: int
) -> list[tuple[int, int, int, int, int]]:
    """Images, rows of a strip, channels in turn, sets stacked and sets in parallel."""
    height, out_height = int(shapes.kernel_height[layer]), int(shapes.out_height[layer])
    kernel_folds = -(-height // elements.rows)
    above = elements.rows // -(-height // kernel_folds)
    most_channels = max(elements.input_words // int(shapes.kernel_width[layer]), 1)
    most_channels = min(most_channels, int(shapes.in_channels[layer] // shapes.groups[layer]))
    found = []
    for images in _shares(int(shapes.batch[layer])):
        for strip in _shares(out_height):
            folds = -(-strip // elements.columns)  # a strip wider than the array lies in rows
            side_by_side = max(elements.columns // strip, 1)
            for stacked in range(1, above // folds + 1):
                parallel = above // folds // stacked * side_by_side
                for channels in range(1, most_channels + 1):
                    found.append((images, strip, channels, stacked, parallel))
    return found


def _shares(total: int) -> list[int]:
    """The sizes of equal shares of a total."""
    return sorted({-(-total // parts) for parts in range(1, total + 1)})
