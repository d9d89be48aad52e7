"""Speed of the hardware model: one candidate at a time, and batches.

Run: ``python benchmarks/pricing.py``. Best of several repeats, on one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timeit
from typing import get_args

from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel import preset_names
from hwmodel.pricing import Level

REPEATS = 30


def resnet_like(layers: int) -> Workload:
    """A CIFAR ResNet's sequence of shapes: a third of the layers at each resolution."""
    shapes = []
    for index in range(layers):
        stage = 3 * index // layers
        channels, side = 16 << stage, 32 >> stage
        sides = (side, side, side, side)
        shapes.append(LayerShape(f"layer{index}", channels, channels, *sides, 3, 3))
    return Workload(f"resnet-like-{layers}", tuple(shapes))


def best_seconds(workload: Workload, candidates: int, name: str, level: Level, calls: int) -> float:
    accelerator = load_accelerator(name)
    states = LayerStates.dense(workload, bits=8, candidates=candidates)
    timer = timeit.Timer(lambda: cost(workload, states, accelerator, level))
    return min(timer.repeat(REPEATS, calls)) / calls


def main() -> None:
    print(f"{'accelerator':14}{'level':8}{'20 layers, 1 candidate':>24}{'55 layers, 1,024':>22}")
    for name in preset_names():
        for level in get_args(Level):
            single = best_seconds(resnet_like(20), 1, name, level, calls=20)
            batch = best_seconds(resnet_like(55), 1024, name, level, calls=1)
            rate = f"{1024 / batch:,.0f} configs/s"
            print(f"{name:14}{level:8}{single * 1e3:>21.3f} ms{rate:>22}")


if __name__ == "__main__":
    main()
