"""Small networks that between them hold every structure that a trace must follow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after training, so that folding them wrongly shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    return network.eval()


def conv(inputs: int, outputs: int, kernel: int = 3, **kwargs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **kwargs)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class PaddedResidual(nn.Module):
    """A shortcut without weights: every second pixel, channels padded with zeros on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.last = conv(3, 8), conv(8, 16, stride=2), conv(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.adaptive_avg_pool2d(F.relu(self.last(x) + x), 1).flatten(1))


class Projected(nn.Module):
    """A residual block whose shortcut has a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.second(F.relu(self.first(x)))
        return self.head(F.relu(y + self.shortcut(x)).mean([2, 3]))


class Dense(nn.Module):
    """DenseNet-like: concatenations, and batch norms in front of their convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], dim=1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], dim=1)
        return self.head(x.mean([2, 3]))


class Inverted(nn.Module):
    """MobileNet-like: an inverted residual with a depthwise convolution and a squeeze gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.depthwise = conv(3, 6), conv(6, 12, 1), conv(12, 12, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.project, self.head = nn.Conv2d(12, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y * gate)
        return self.head(F.max_pool2d(x, x.shape[-1]).view(x.shape[0], -1))


class Split(nn.Module):
    """Channel split, one branch convolved, then concatenated and shifted by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = conv(3, 8), conv(4, 6)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 10).view(10, 1, 1))
        self.last, self.head = conv(10, 4), nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], dim=1) + self.shift
        x = F.avg_pool2d(self.last(x), x.shape[-1] // 4)
        return self.head(x.reshape(x.shape[0], -1))


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle: channels that cannot be removed freely."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.last = conv(3, 8), conv(8, 8, groups=2), conv(8, 8, groups=2)
        self.free, self.head = conv(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.free(self.last(x)).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block on image patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(dim=1))


class Flat(nn.Module):
    """LeNet-like: a view straight after a convolution, and a layer that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, stride=4), nn.Linear(6 * 16, 10)
        self.unread, self.head = nn.Linear(10, 3), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.relu(self.fc(x.view(x.shape[0], -1)))
        self.unread(x)
        return self.head(x)


class Tokens(nn.Module):
    """Linear layers on tokens, with a batch norm that normalizes the tokens' axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(48, 12), nn.BatchNorm1d(16)
        self.mix, self.head = nn.Linear(12, 12), nn.Linear(12, 5)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], 16, 48)
        with torch.no_grad():
            x = F.gelu(self.norm(self.embed(x)))
        return self.head(self.mix(x).amax(dim=1))


class Parts(nn.Module):
    """Two halves of a convolution's channels that are pooled differently, then joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).split([4, 4], dim=1)
        x = torch.cat([F.max_pool2d(left, 2), F.avg_pool2d(right, 2)], dim=-3)
        return self.head(self.last(x).mean((2, 3)))


class Sequence(nn.Module):
    """One-dimensional convolutions: an even kernel with padding "same", a stride, a dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 4, padding="same")
        self.second = nn.Conv1d(8, 8, 3, stride=2, dilation=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.silu(self.first(x.flatten(2)))))
        return self.head(F.adaptive_avg_pool1d(x, 1).squeeze(-1))


class InPlace(nn.Module):
    """An in-place operation behind a view that is read afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        view = x.flatten(2)
        F.relu_(x)
        return self.head(view.mean(2))


class Gated(nn.Module):
    """A gate that is expanded, pooled maxima, PReLU, and operations that write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.excite = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)
        self.last, self.slope, self.head = nn.Conv2d(8, 6, 3), nn.PReLU(6), nn.Linear(24, 5)
        self.slope.weight.data.uniform_(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x), inplace=True)
        gate = self.excite(x.amax((2, 3))).sigmoid_()
        x = x * gate.view(x.shape[0], 8, 1, 1).expand_as(x)
        return self.head(F.adaptive_max_pool2d(self.slope(self.last(x)), 2).flatten(1))


class Decoder(nn.Module):
    """A transposed convolution with its batch norm, a skip, channels that become pixels, and a
    depthwise transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv(3, 8, stride=2), conv(8, 12, stride=2)
        up = nn.ConvTranspose2d(12, 6, 3, 2, padding=1, output_padding=1, bias=False)
        self.up = nn.Sequential(up, nn.BatchNorm2d(6), nn.ReLU())
        self.merge, self.fine, self.head = conv(14, 12), conv(3, 8), nn.Linear(8, 5)
        self.each = nn.ConvTranspose2d(8, 8, 4, 2, padding=1, groups=8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        x = self.merge(torch.cat([self.up(self.down(skip)), skip], 1))
        return self.head(self.each(self.fine(F.pixel_shuffle(x, 2))).relu().mean((2, 3)))


class Views(nn.Module):
    """Two crops of every image, merged into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = conv(3, 8), conv(8, 6, stride=2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        crops = torch.stack([x[..., :8, :8], x[..., 8:, 8:]], dim=1)
        x = self.last(self.stem(crops.flatten(0, 1))).mean((2, 3))
        return self.head(x.view(-1, 2, x.shape[1]).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(),
        nn.Linear(12, 5),
    )  # fmt: skip


NETWORKS = {
    "padded_residual": PaddedResidual,
    "projected": Projected,
    "dense": Dense,
    "inverted": Inverted,
    "split": Split,
    "shuffle": Shuffle,
    "attention": Attention,
    "flat": Flat,
    "tokens": Tokens,
    "parts": Parts,
    "sequence": Sequence,
    "in_place": InPlace,
    "gated": Gated,
    "decoder": Decoder,
    "views": Views,
    "mlp": mlp,
}
"""Constructors by name; all take (batch, 3, 16, 16) and return (batch, 5)."""
