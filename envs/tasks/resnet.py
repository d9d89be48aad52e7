"""The residual networks for CIFAR-10 of He et al. 2016 (arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from torch import Tensor
from torch import nn
from torch.nn import functional as F


class CifarResNet(nn.Module):
    """6n + 2 layers, widths 16, 32 and 64, shortcuts without parameters ("option A").

    Input (batch, 3, 32, 32), output (batch, 10). Parameter names are those of the public
    checkpoints (github.com/akamaster/pytorch_resnet_cifar10).

    Args:
        depth: Number of layers, 6n + 2: 20, 32, 44 or 56.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widens = in_channels != out_channels
        self.conv1 = _conv3x3(in_channels, out_channels, stride=2 if widens else 1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = _PaddedShortcut(out_channels // 4) if widens else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        return F.relu(branch + self.shortcut(features))


class _PaddedShortcut(nn.Module):
    """Every second pixel, with ``channels`` zero channels before and after."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, features: Tensor) -> Tensor:
        return F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, self.channels, self.channels))


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    first = _BasicBlock(in_channels, out_channels)
    return nn.Sequential(
        first, *(_BasicBlock(out_channels, out_channels) for _ in range(blocks - 1))
    )


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
