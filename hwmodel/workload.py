"""What a network asks of the hardware: the shapes of its layers and which layer feeds which."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field

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
        groups: Groups; ``groups == in_channels == out_channels`` is depthwise.
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
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels


@dataclass(frozen=True)
class Workload:
    """The layers of a network in execution order.

    Attributes:
        name: Name of the network.
        layers: In execution order, with unique names.
        feeds: For every layer, the indices of the layers whose outputs (through any operations
            without weights) reach its input. Empty for a layer that reads the network's input.
    """

    name: str
    layers: tuple[LayerShape, ...]
    feeds: tuple[tuple[int, ...], ...] = field(default=())

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if not names:
            raise InputError("layers", names, "a workload needs at least one layer")
        if len(set(names)) != len(names):
            raise InputError("layers", names, "layer names must be unique")
        if self.feeds and len(self.feeds) != len(names):
            raise InputError("feeds", self.feeds, f"give one entry for each of {len(names)} layers")

    def __len__(self) -> int:
        return len(self.layers)
