"""How much what compression saves depends on the energy of a MAC and of DRAM.

Run: ``python benchmarks/sensitivity.py [--accelerator eyeriss-like]``. Prints a Markdown table: the
energy of compressed ResNet-20s (CIFAR-10) relative to dense INT8, each under the same law. Only
shapes matter, so no weights are needed and nothing is random.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import torch

from envs.tasks.resnet import CifarResNet
from envs.trace import trace
from hwmodel import Accelerator
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel.parts import Mac

MAC_LAWS = {
    "bit products and adder (the preset's)": None,
    # Quadratic and linear term through Horowitz's multipliers (ISSCC 2014), 45 nm.
    "with a term linear in bits": Mac(
        multiplier_per_bit_product=0.0029948, operand_per_bit=0.00052085, adder_per_bit=0.003125
    ),
    # Through the synthesis of Bit Fusion (ISCA 2018), 45 nm; its constant on 16 accumulator bits.
    "Bit Fusion's synthesis": Mac(
        multiplier_per_bit_product=0.00271359, operand_per_bit=0.00702504, adder_per_bit=0.00114453
    ),
}

DRAM_PJ_PER_BIT = {"the preset's": None, "LPDDR4, 8": 8.0, "LPDDR, 40": 40.0, "DDR3, 70": 70.0}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "5 bits, half the weights": dict(bits=5, density=0.5),
    "4 bits": dict(bits=4),
    "8 bits, half the weights": dict(bits=8, density=0.5),
    "8 bits, half the channels": dict(bits=8, channels=0.5),
}


def with_constants(
    accelerator: Accelerator, mac: Mac | None, dram_pj_per_bit: float | None
) -> Accelerator:
    """The same accelerator with another MAC law or another DRAM."""
    memories = list(accelerator.memories)
    if dram_pj_per_bit is not None:
        for index, memory in enumerate(memories):
            if memory.role == "dram":
                word_pj = dram_pj_per_bit * memory.word_bits
                energy = dict(read_energy_per_word=word_pj, write_energy_per_word=word_pj)
                memories[index] = memory.model_copy(update=energy)
    update = {"memories": tuple(memories), "mac": mac or accelerator.mac}
    return accelerator.model_copy(update=update)


def compressed(
    workload: Workload, bits: int, density: float = 1.0, channels: float = 1.0
) -> LayerStates:
    """Every layer at a width and a density; inner channels scaled, not the network's ends."""
    states = LayerStates.dense(workload, bits)
    scale = np.full_like(states.in_channels, channels)
    first, last = scale.copy(), scale.copy()
    first[:, 0], last[:, -1] = 1.0, 1.0
    return dataclasses.replace(
        states,
        in_channels=states.in_channels * first,
        out_channels=states.out_channels * last,
        weight_density=np.full_like(scale, density),
    )


def ratios(workload: Workload, accelerator: Accelerator) -> list[float]:
    dense = cost(workload, LayerStates.dense(workload, 8), accelerator).energy_pj[0]
    return [
        float(cost(workload, compressed(workload, **each), accelerator).energy_pj[0] / dense)
        for each in CONFIGURATIONS.values()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", default="eyeriss-like")
    accelerator = load_accelerator(parser.parse_args().accelerator)
    workload = trace(CifarResNet(20).eval(), torch.zeros(1, 3, 32, 32), "resnet20").workload

    print("| MAC energy | DRAM, pJ a bit |", " | ".join(CONFIGURATIONS), "|")
    print("|" + "---|" * (2 + len(CONFIGURATIONS)))
    for mac_name, mac in MAC_LAWS.items():
        for dram_name, dram in DRAM_PJ_PER_BIT.items():
            row = ratios(workload, with_constants(accelerator, mac, dram))
            numbers = " | ".join(f"{ratio:.3f}" for ratio in row)
            print(f"| {mac_name} | {dram_name} | {numbers} |")


if __name__ == "__main__":
    main()
