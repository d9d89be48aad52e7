"""Speed of the hardware model at all levels, and of its mapper against ZigZag's.

Run on one core: ``OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/hardware.py``. Times are CPU
time of this process. The comparison needs ``pip install -e .[benchmark]``; without, it is left out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import importlib.util
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel import preset_names

LAYER = (16, 16, 32, 3)
"""Output and input channels, output side and kernel: most of ResNet-56's first third."""


def resnet56() -> Workload:
    """The convolutions of ResNet-56 for 32 x 32 images: a third at each resolution."""
    shapes = [LayerShape("stem", 3, 16, 32, 32, 32, 32, 3, 3, padding=(1, 1))]
    for index in range(54):
        stage, channels = index // 18, 16 << (index // 18)
        first = index % 18 == 0 and stage > 0
        inputs, side = channels // (2 if first else 1), 32 >> stage
        before, stride = (2 * side, (2, 2)) if first else (side, (1, 1))
        sizes = (inputs, channels, before, before, side, side, 3, 3, stride, (1, 1))
        shapes.append(LayerShape(f"conv{index}", *sizes))
    return Workload("resnet56", (*shapes, LayerShape("fc", 64, 10)))


def resnet50() -> Workload:
    """The layers of ResNet-50 for 224 x 224 images."""
    shapes = [LayerShape("stem", 3, 64, 224, 224, 112, 112, 7, 7, (2, 2), (3, 3))]
    inputs = 64
    for stage, (blocks, width, side) in enumerate(
        ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))
    ):
        for block in range(blocks):
            stride = (2, 2) if block == 0 and stage > 0 else (1, 1)
            before = side * stride[0]
            name, outputs = f"stage{stage}.block{block}", 4 * width
            both = (before, before, side, side)
            shapes += [
                LayerShape(f"{name}.a", inputs, width, before, before, before, before),
                LayerShape(f"{name}.b", width, width, *both, 3, 3, stride, (1, 1)),
                LayerShape(f"{name}.c", width, outputs, side, side, side, side),
            ]
            if block == 0:
                shapes.append(LayerShape(f"{name}.d", inputs, outputs, *both, stride=stride))
            inputs = outputs
    return Workload("resnet50", (*shapes, LayerShape("fc", 2048, 1000)))


def padded_layer(out: int, channels: int, side: int, kernel: int) -> Workload:
    """A layer whose padding is part of its input, as ZigZag counts it."""
    inside = side + kernel - 1
    sizes = (channels, out, inside, inside, side, side, kernel, kernel)
    return Workload("layer", (LayerShape("layer", *sizes),))


def cpu_seconds(run: Callable[[], object], repeats: int = 1) -> float:
    """Least CPU time of several runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


class EmptyCache:
    """A folder of mappings of its own, empty at the start."""

    def __enter__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._before = os.environ.get("JOULECUT_CACHE")
        os.environ["JOULECUT_CACHE"] = self._folder.name

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
        del os.environ["JOULECUT_CACHE"]
        if self._before is not None:
            os.environ["JOULECUT_CACHE"] = self._before


def cold_search(counting: str) -> tuple[float, float]:
    """CPU seconds of a search of ``LAYER`` that knows nothing, and the energy found."""
    accelerator = load_accelerator("eyeriss-relative")

    def search(workload: Workload) -> float:
        states = LayerStates.dense(workload, bits=16)
        report = cost(workload, states, accelerator, "fine", counting=counting)  # type: ignore[arg-type]
        return float(report.energy_pj[0])

    with EmptyCache():
        search(padded_layer(8, 8, 8, 3))  # another layer, so that nothing is imported below
        start = time.process_time()
        energy = search(padded_layer(*LAYER))
        return time.process_time() - start, energy


def random_states(workload: Workload, bits: tuple[int, ...], candidates: int) -> LayerStates:
    """Dense candidates whose weights have a random supported width in every layer."""
    states = LayerStates.dense(workload, bits=bits[-1], candidates=candidates)
    states.weight_bits[:] = np.random.default_rng(0).choice(bits, states.weight_bits.shape)
    return states


def batch_rates() -> None:
    workload = resnet56()
    print("ResNet-56 in batches of 1,024, and one candidate; least of 10 runs")
    for name in preset_names():
        accelerator = load_accelerator(name)
        bits = accelerator.precision.weight_bits
        many, one = (random_states(workload, bits, count) for count in (1024, 1))
        for level in ("coarse", "mid"):
            batch = cpu_seconds(lambda: cost(workload, many, accelerator, level), 10)  # noqa: B023
            single = cpu_seconds(lambda: cost(workload, one, accelerator, level), 10)  # noqa: B023
            rate = f"{1024 / batch:>10,.0f} configurations a second"
            print(f"  {name:18}{level:8}{rate}{single * 1e3:>9.2f} ms for one")


def fine_networks() -> None:
    accelerator = load_accelerator("eyeriss-like")
    workload = resnet50()
    states = LayerStates.dense(workload, bits=8)
    with EmptyCache():
        cold = cpu_seconds(lambda: cost(workload, states, accelerator, "fine"))
    print(f"ResNet-50 cold at fine level, eyeriss-like: {cold:.2f} s")

    workload = resnet56()
    changed = []
    for layer in range(len(workload)):
        states = LayerStates.dense(workload, bits=8)
        states.weight_bits[0, layer] = 4
        changed.append(states)
    with EmptyCache():
        for states in changed:
            cost(workload, states, accelerator, "fine")
        times = [cpu_seconds(lambda: cost(workload, s, accelerator, "fine")) for s in changed]  # noqa: B023
    print(f"one layer of ResNet-56 changed, warm: {np.median(times) * 1e3:.2f} ms")


def against_zigzag() -> None:
    ours, _ = cold_search("native")
    theirs, energy = cold_search("zigzag")
    print(f"search of layer {LAYER} (K, C, output side, kernel), cold")
    print(f"  joulecut, own counting      {ours:8.3f} s")
    print(f"  joulecut, ZigZag's counting {theirs:8.3f} s, {energy / 1e6:.2f} M MAC units")
    if importlib.util.find_spec("zigzag") is None:
        print("  ZigZag is not installed")
        return
    seconds, zigzag_energy = run_zigzag(*LAYER)
    print(f"  ZigZag                      {seconds:8.3f} s, {zigzag_energy / 1e6:.2f} M MAC units")
    print(f"  CPU time ratio {seconds / ours:.0f} and {seconds / theirs:.0f}, ", end="")
    print(f"energy ratio {energy / zigzag_energy:.3f}")


def run_zigzag(out: int, channels: int, side: int, kernel: int) -> tuple[float, float]:
    """CPU seconds and energy of ZigZag's search on the array of ``eyeriss-relative``."""
    from zigzag.mapping.temporal_mapping import TemporalMappingType
    from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
    from zigzag.stages.main import MainStage
    from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
    from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
    from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
    from zigzag.stages.parser.workload_parser import WorkloadParserStage
    from zigzag.stages.results.reduce_stages import MinimalEnergyStage
    from zigzag.stages.workload_iterator import WorkloadStage

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "workload": [_zigzag_layer(out, channels, side, kernel)],
            "accelerator": _zigzag_array(),
            "mapping": [
                {
                    "name": "default",
                    "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
                    "spatial_mapping_hint": {"D1": ["K"], "D2": ["C"]},
                }
            ],
        }
        paths = {}
        for name, content in files.items():
            path = Path(folder) / f"{name}.yaml"
            path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
            paths[name] = str(path)
        stages = [
            WorkloadParserStage, AcceleratorParserStage, WorkloadStage, MinimalEnergyStage,
            SpatialMappingGeneratorStage, MinimalEnergyStage, TemporalMappingGeneratorStage,
            CostModelStage,
        ]  # fmt: skip
        start = time.process_time()
        results = MainStage(
            list_of_callables=stages,
            **paths,
            loma_lpf_limit=5,
            loma_show_progress_bar=False,
            nb_mappings_generated=3,
            enable_mix_spatial_mapping_generation=False,
            access_same_data_considered_as_no_access=True,
            temporal_mapping_type=TemporalMappingType.UNEVEN,
        ).run()
        seconds = time.process_time() - start
    return seconds, float(results[0][0].energy_total)


def _zigzag_layer(out: int, channels: int, side: int, kernel: int) -> dict[str, Any]:
    inside = side + kernel - 1
    return {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
        "dimension_relations": ["ix=1*ox+1*fx", "iy=1*oy+1*fy"],
        "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
        "loop_sizes": [1, out, channels, side, side, kernel, kernel],
        "operand_precision": {"W": 16, "I": 16, "O": 16, "O_final": 16},
        "pr_loop_dims": ["IX", "IY"],
        "pr_loop_sizes": [inside, inside],
        "padding": [[0, 0], [0, 0]],
    }


def _zigzag_array() -> dict[str, Any]:
    """``eyeriss-relative`` as ZigZag has it: 14 x 12 elements, no array network."""

    def port(kind: str, bits: int, *moves: str) -> dict[str, Any]:
        name = {"read": "r", "write": "w", "read_write": "rw"}[kind]
        return {"name": f"{name}_port_1", "type": kind, "bandwidth_min": 16,
                "bandwidth_max": bits, "allocation": list(moves)}  # fmt: skip

    def memory(bits: int, cost: float, operands: list[str], ports: list[Any], shared: bool) -> Any:
        width = ports[0]["bandwidth_max"]
        price = cost * width / 16
        return {"size": bits, "r_cost": price, "w_cost": price, "area": 0, "latency": 1,
                "operands": operands, "ports": ports,
                "served_dimensions": ["D1", "D2"] if shared else []}  # fmt: skip

    def register(words: int, operand: str, reads: list[str], writes: list[str]) -> Any:
        ports = [port("read", 16, *reads), port("write", 16, *writes)]
        return memory(16 * words, 1.0, [operand], ports, shared=False)

    every = [f"{operand}, {move}" for operand in ("I1", "I2") for move in ("fh", "tl")]
    every += [f"O, {move}" for move in ("fh", "tl", "fl", "th")]
    shared = [port("read_write", 64, *every)]
    everything = ["I1", "I2", "O"]
    return {
        "name": "eyeriss_relative",
        "memories": {
            "inputs": register(12, "I1", ["I1, tl"], ["I1, fh"]),
            "weights": register(225, "I2", ["I2, tl"], ["I2, fh"]),
            "sums": register(24, "O", ["O, tl", "O, th"], ["O, fh", "O, fl"]),
            "buffer": memory(884736, 6.0, everything, shared, shared=True),
            "dram": memory(10**10, 200.0, everything, shared, shared=True),
        },
        "operational_array": {
            "unit_energy": 1, "unit_area": 1, "dimensions": ["D1", "D2"], "sizes": [14, 12],
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("batches", "fine", "zigzag"))
    chosen = parser.parse_args().only
    for name, part in (
        ("batches", batch_rates),
        ("fine", fine_networks),
        ("zigzag", against_zigzag),
    ):
        if chosen in (None, name):
            part()


if __name__ == "__main__":
    main()
