"""What a network asks of the hardware: the shapes of its layers and which layer feeds which."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from typing import Literal

from hwmodel.errors import InputError


@dataclass(frozen=True)
class LayerShape:
    """One convolution or matrix product. A linear layer is a 1x1 convolution over its tokens.

    Attributes:
        name: Unique name, the path of the layer in its network.
        batch: Images an inference processes together.
        in_channels: Input channels of the dense layer, all groups together.
        out_channels: Output channels of the dense layer, all groups together.
        in_height, in_width: Input feature map, without padding.
        out_height, out_width: Output feature map.
        kernel_height, kernel_width: Kernel.
        stride: (vertical, horizontal).
        padding: (vertical, horizontal), on either side.
        dilation: (vertical, horizontal).
        groups: Groups; ``groups == in_channels`` is depthwise.
    """

    name: str
    in_channels: int
    out_channels: int
    in_height: int = 1
    in_width: int = 1
    out_height: int = 1
    out_width: int = 1
    kernel_height: int = 1
    kernel_width: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        positive = (
            "in_channels out_channels in_height in_width out_height out_width "
            "kernel_height kernel_width groups batch"
        )
        for key in positive.split():
            if getattr(self, key) < 1:
                raise InputError(f"{self.name}.{key}", getattr(self, key), "use a number >= 1")
        for key in ("in_channels", "out_channels"):
            if getattr(self, key) % self.groups:
                allowed = f"use a multiple of groups={self.groups}"
                raise InputError(f"{self.name}.{key}", getattr(self, key), allowed)
        for key, least in (("stride", 1), ("dilation", 1), ("padding", 0)):
            if min(getattr(self, key)) < least:
                allowed = f"use numbers >= {least}"
                raise InputError(f"{self.name}.{key}", getattr(self, key), allowed)
        for axis, side in enumerate(("height", "width")):
            kernel = getattr(self, f"kernel_{side}")
            reach = (kernel - 1) * self.dilation[axis] + 1
            padded = getattr(self, f"in_{side}") + 2 * self.padding[axis]
            if reach > padded:
                allowed = f"its padded input is {padded} and the dilated kernel {reach}"
                raise InputError(f"{self.name}.kernel_{side}", kernel, allowed)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer."""
        kernel = self.kernel_height * self.kernel_width
        outputs = self.batch * self.out_channels * self.out_height * self.out_width
        return outputs * (self.in_channels // self.groups) * kernel

    @property
    def weights(self) -> int:
        """Weights of the dense layer, biases not counted."""
        kernel = self.kernel_height * self.kernel_width
        return self.out_channels * (self.in_channels // self.groups) * kernel

    @property
    def largest_map(self) -> int:
        """Values of its input or its output, whichever has more, without padding."""
        inputs = self.in_channels * self.in_height * self.in_width
        outputs = self.out_channels * self.out_height * self.out_width
        return self.batch * max(inputs, outputs)

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels


VectorKind = Literal["add", "multiply", "pool", "activation", "requantize"]


@dataclass(frozen=True)
class VectorOperation:
    """Work without weights on a layer's output, on its way to memory.

    Attributes:
        kind: What is done. ``multiply`` and ``requantize`` multiply, the others add or compare.
        layer: Index of the layer that it comes behind and whose output channels it has.
        operations: For each of these channels, all images of the batch together.
        reads: Indices of earlier layers whose outputs are read for it once more (the other
            operand of a residual addition).
    """

    kind: VectorKind
    layer: int
    operations: float
    reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Workload:
    """The layers of a network in execution order.

    Attributes:
        name: Name of the network.
        layers: In execution order, with unique names.
        feeds: For every layer, the indices of the layers whose outputs (through any operations
            without weights) reach its input. Empty for a layer that reads the network's input.
        operations: Additions, pooling and the like between the layers; none are priced if empty.
        sources: For every layer, those of ``feeds`` whose maps it reads itself: the sum of an
            addition is written by the layer that the addition comes behind. ``feeds`` if empty.
        asked_by: For every layer, those whose inputs say how wide its output is written. Those
            that read it if empty.
        values_read: For every layer, how many values it reads of the map of each of ``sources``,
            or numbers in proportion. As many as that layer has output channels if empty, which is
            right where all of them have the same size.
    """

    name: str
    layers: tuple[LayerShape, ...]
    feeds: tuple[tuple[int, ...], ...] = field(default=())
    operations: tuple[VectorOperation, ...] = ()
    sources: tuple[tuple[int, ...], ...] = ()
    asked_by: tuple[tuple[int, ...], ...] = ()
    values_read: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if not names:
            raise InputError("layers", names, "a workload needs at least one layer")
        if len(set(names)) != len(names):
            raise InputError("layers", names, "layer names must be unique")
        if self.feeds and len(self.feeds) != len(names):
            raise InputError("feeds", self.feeds, f"give one entry for each of {len(names)} layers")
        if self.sources and len(self.sources) != len(names):
            raise InputError(
                "sources", self.sources, f"give one entry for each of {len(names)} layers"
            )
        if self.asked_by and len(self.asked_by) != len(names):
            raise InputError(
                "asked_by", self.asked_by, f"give one entry for each of {len(names)} layers"
            )
        if self.values_read and list(map(len, self.values_read)) != list(map(len, self.maps_read)):
            allowed = "give one number for each map that each layer reads"
            raise InputError("values_read", self.values_read, allowed)
        for index, operation in enumerate(self.operations):
            if not 0 <= operation.layer < len(names):
                allowed = f"use 0 to {len(names) - 1}"
                raise InputError(f"operations[{index}].layer", operation.layer, allowed)
            for read in operation.reads:
                if not 0 <= read <= operation.layer:
                    allowed = f"use 0 to {operation.layer}: a layer before the operation"
                    raise InputError(f"operations[{index}].reads", read, allowed)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def maps_read(self) -> tuple[tuple[int, ...], ...]:
        """``sources``, or ``feeds`` where there are none."""
        return self.sources or self.feeds

    @property
    def parts_read(self) -> tuple[tuple[float, ...], ...]:
        """``values_read``, or the output channels of the layers read where there are none."""
        if self.values_read:
            return self.values_read
        return tuple(
            tuple(self.layers[writer].out_channels for writer in writers)
            for writers in self.maps_read
        )

    @property
    def width_asked_by(self) -> tuple[tuple[int, ...], ...]:
        """``asked_by``, or for every layer those that read its map where there are none."""
        if self.asked_by:
            return self.asked_by
        return tuple(
            tuple(reader for reader, writers in enumerate(self.maps_read) if writer in writers)
            for writer in range(len(self))
        )
