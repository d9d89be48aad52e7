"""The mapper on plain numbers: an exhaustive search finds nothing better, and stores are safe."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from hwmodel.errors import InputError
from hwmodel.mapper.mapping import Mapping
from hwmodel.mapper.problem import LOOPS
from hwmodel.mapper.problem import Axis
from hwmodel.mapper.problem import B
from hwmodel.mapper.problem import C
from hwmodel.mapper.problem import G
from hwmodel.mapper.problem import K
from hwmodel.mapper.problem import Layer
from hwmodel.mapper.problem import Level
from hwmodel.mapper.problem import Port
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import R
from hwmodel.mapper.problem import S
from hwmodel.mapper.problem import X
from hwmodel.mapper.problem import Y
from hwmodel.mapper.solve import find
from hwmodel.mapper.solve import solve
from hwmodel.mapper.store import Store

RELEVANT = ((K, C, R, S), (B, C, Y, X, R, S), (B, K, Y, X))
"""Loops that change the values of weights, inputs and outputs."""


def level(names: str | None, price: float, **options: object) -> Level:
    """Words of 16 bits at one price for all operands."""
    bits = (16.0, 16.0, 16.0)
    per_bit = (price / 16,) * 3
    return Level((names,) * 3, bits, 16.0, per_bit, per_bit, **options)  # type: ignore[arg-type]


def problem(
    *sizes: int,
    registers: tuple[int, int, int] | None = None,
    buffer_words: int | None = 64,
    axes: tuple[Axis, ...] = (),
    **options: object,
) -> Problem:
    """A layer of (batch, K, C, Y, X, R, S) on one element with shared costs 1, 6 and 200."""
    layer = Layer((*sizes, 1), input_size=(sizes[3] + sizes[5] - 1, sizes[4] + sizes[6] - 1))  # type: ignore[arg-type]
    spaces = tuple(((i,), 16.0 * words) for i, words in enumerate(registers or ()))
    shared = (((0, 1, 2), 16.0 * buffer_words),) if buffer_words else ()
    return Problem(
        layer=dataclasses.replace(layer, **options.pop("layer", {})),  # type: ignore[arg-type]
        axes=axes,
        vector=Axis(1, ()),
        row_stationary=False,
        latched=None,
        positions_per_weight=0,
        registers=level("registers" if registers else None, 1.0, spaces=spaces),
        buffer=level("buffer" if buffer_words else None, 6.0, spaces=shared),
        dram=level("dram", 200.0, ports=options.pop("ports", ())),
        hop=(0.0, 0.0, 0.0),
        mac=float(layer.macs),
        **options,  # type: ignore[arg-type]
    )


def nests(sizes: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    """All orders of all prime factors of the loops, innermost first."""
    factors = []
    for loop, size in enumerate(sizes):
        rest, divisor = size, 2
        while rest > 1:
            while rest % divisor == 0:
                factors.append((loop, divisor))
                rest //= divisor
            divisor += 1
    return sorted(set(itertools.permutations(factors)))


def held(operand: int, inside: list[tuple[int, int]]) -> int:
    """Values of an operand that the loops inside touch, at stride 1."""
    extent = [1] * len(LOOPS)
    for loop, count in inside:
        extent[loop] *= count
    if operand == 1:
        rows, columns = extent[Y] + extent[R] - 1, extent[X] + extent[S] - 1
        rows, columns = min(rows, extent[Y] * extent[R]), min(columns, extent[X] * extent[S])
        return extent[B] * extent[C] * rows * columns
    return math.prod(extent[loop] for loop in RELEVANT[operand])


def crossings(operand: int, nest: tuple[tuple[int, int], ...], cut: int) -> int:
    """Words fetched if an operand is held below ``cut``: once for each tile that differs."""
    outside = list(nest[cut:])
    while outside and outside[0][0] not in RELEVANT[operand]:
        outside.pop(0)
    return held(operand, list(nest[:cut])) * math.prod(count for _, count in outside)


def exhaustive_dram_words(sizes: tuple[int, ...], buffer_words: int) -> int:
    """Least words that cross DRAM over all loop orders and all tiles of every operand.

    Windows do not slide here. Every operand has a tile of its own: uneven allocation.
    """
    totals = [crossings(operand, nests(sizes)[0], len(nests(sizes)[0])) for operand in range(3)]
    best = 10**9
    for nest in nests(sizes):
        options = []
        for operand in range(3):
            cuts = []
            for cut in range(len(nest) + 1):
                words = crossings(operand, nest, cut)
                if operand == 2:
                    words = 2 * words - totals[2]
                cuts.append((held(operand, list(nest[:cut])), words))
            options.append(cuts)
        for choice in itertools.product(*options):
            if sum(size for size, _ in choice) <= buffer_words:
                best = min(best, sum(words for _, words in choice))
    return best


@pytest.mark.parametrize(
    "sizes", [(1, 4, 4, 4, 1, 1, 1), (2, 2, 4, 1, 2, 1, 1), (1, 4, 2, 2, 1, 3, 1)], ids=str
)
@pytest.mark.parametrize("words", [6, 12, 20, 40])
def test_no_loop_order_or_tile_fetches_less(sizes: tuple[int, ...], words: int) -> None:
    # DRAM alone costs, so that the least energy is the least traffic.
    asked = problem(*sizes, buffer_words=words)
    asked = dataclasses.replace(asked, buffer=dataclasses.replace(asked.buffer, read=(0.0,) * 3,
                                                                  write=(0.0,) * 3))  # fmt: skip
    assert dram_words(find(asked, "native")) <= exhaustive_dram_words(sizes, words)


def dram_words(mapping: Mapping) -> float:
    return sum(bits for (name, _), bits in mapping.traffic_bits.items() if name == "dram") / 16


def test_everything_crosses_once_if_the_buffer_holds_it() -> None:
    mapping = find(problem(1, 4, 4, 4, 4, 3, 3, buffer_words=10_000), "native")
    assert dram_words(mapping) == 4 * 4 * 9 + 4 * 6 * 6 + 4 * 4 * 4


def test_a_window_fetches_what_is_new() -> None:
    # Three rows of inputs, one output and one weight at a time: rows slide, and cross once.
    mapping = find(problem(1, 1, 1, 16, 4, 3, 3, buffer_words=60), "native")
    assert mapping.traffic_bits["dram", "input"] == 16 * 18 * 6


def test_stride_beyond_the_kernel_skips_inputs() -> None:
    asked = problem(
        1, 2, 2, 4, 4, 1, 1, buffer_words=10_000, layer={"stride": (2, 2), "input_size": (8, 8)}
    )
    assert find(asked, "native").traffic_bits["dram", "input"] == 16 * 2 * 4 * 4


def test_padding_is_not_fetched() -> None:
    asked = problem(1, 2, 2, 4, 4, 3, 3, buffer_words=10_000, layer={"input_size": (4, 4)})
    assert find(asked, "native").traffic_bits["dram", "input"] == 16 * 2 * 4 * 4


def test_one_memory_and_one_element_read_everything_every_time() -> None:
    mapping = find(problem(1, 2, 2, 2, 2, 1, 1, buffer_words=None), "native")
    assert mapping.traffic_bits["dram", "weight"] == 16 * 16
    assert mapping.cycles == 16


def test_transfers_hide_only_where_a_second_tile_fits() -> None:
    sizes = (1, 8, 8, 8, 8, 1, 1)
    ports = (Port((0, 1, 2), 16.0),)  # one word a cycle
    roomy = find(problem(*sizes, buffer_words=10_000, ports=ports), "native")
    words = dram_words(roomy)
    assert roomy.cycles == max(roomy.compute_cycles, words)
    tight = find(problem(*sizes, buffer_words=24, ports=ports, objective="latency"), "native")
    assert tight.cycles >= max(tight.compute_cycles, dram_words(tight))
    assert roomy.stall_cycles == roomy.cycles - roomy.compute_cycles


def test_objectives_are_each_best_at_their_own() -> None:
    sizes = (1, 8, 8, 6, 6, 3, 3)
    ports = (Port((0, 1, 2), 64.0),)
    axes = (Axis(4, ((K, 4), (Y, 4))), Axis(4, ((C, 4), (X, 4))))

    def by(objective: str) -> Mapping:
        return find(
            problem(*sizes, registers=(16, 8, 4), buffer_words=200, axes=axes, ports=ports,
                    objective=objective),
            "native",
        )  # fmt: skip

    energy, latency, product = by("energy"), by("latency"), by("edp")
    assert energy.total_energy <= min(latency.total_energy, product.total_energy)
    assert latency.cycles <= min(energy.cycles, product.cycles)
    least = product.total_energy * product.cycles
    assert least <= energy.total_energy * energy.cycles * (1 + 1e-9)
    assert least <= latency.total_energy * latency.cycles * (1 + 1e-9)


SIZES = st.tuples(
    st.integers(1, 2), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9),
    st.integers(1, 9), st.sampled_from((1, 3)), st.sampled_from((1, 3)),
)  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(SIZES, st.integers(32, 200), st.integers(0, 400))
def test_a_larger_buffer_never_costs_more(sizes: tuple[int, ...], words: int, more: int) -> None:
    def energy(buffer_words: int) -> float:
        asked = problem(*sizes, registers=(9, 3, 2), buffer_words=buffer_words)
        return find(asked, "native").total_energy

    assert energy(words + more) <= energy(words) * (1 + 1e-9)


@settings(max_examples=8, deadline=None)
@given(SIZES)
def test_parts_sum_and_the_search_is_deterministic(sizes: tuple[int, ...]) -> None:
    axes = (Axis(4, ((K, 4), (G, 4))), Axis(3, ((Y, 3), (C, 3))))
    asked = problem(*sizes, registers=(9, 3, 2), buffer_words=128, axes=axes)
    first, second = find(asked, "native"), find(asked, "native")
    assert first == second
    assert first.total_energy == pytest.approx(sum(first.energy.values()))
    assert 0 < first.utilization <= 1
    iterations = math.prod(sizes) / (first.utilization * 12)
    assert first.compute_cycles == pytest.approx(iterations)


def test_a_buffer_too_small_for_one_value_is_refused() -> None:
    asked = problem(1, 4, 4, 4, 4, 1, 1, registers=(1, 1, 1), buffer_words=1)
    asked = dataclasses.replace(asked, rules=dataclasses.replace(asked.rules))
    with pytest.raises(InputError, match="buffer"):
        find(asked, "zigzag")


def test_a_folder_of_mappings_is_shared_and_survives_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping = find(problem(1, 4, 4, 4, 4, 1, 1), "native")
    store = Store(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.put("ab12", mapping), range(32)))
    assert Store(tmp_path).get("ab12") == mapping
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ab12.json"]
    for garbage in (
        "{",
        "[]",
        '{"traffic_bits": 1, "nest": []}',
        '{"traffic_bits": [], "nest": 1}',
    ):
        (tmp_path / "ab" / "ab12.json").write_text(garbage, encoding="utf-8")
        assert store.get("ab12") is None
    assert store.get("missing") is None
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert solve(problem(1, 4, 4, 4, 4, 1, 1), "native") == mapping


def test_stored_mappings_are_for_all_users_whom_the_umask_lets_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Store(tmp_path).put("ab12", find(problem(1, 2, 2, 2, 2, 1, 1), "native"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ab" / "ab12.json").stat().st_mode) == 0o644


def test_what_cannot_be_stored_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "ab" / "ab12.json").mkdir(parents=True)
    Store(tmp_path).put("ab12", find(problem(1, 2, 2, 2, 2, 1, 1), "native"))
    assert [path.name for path in (tmp_path / "ab").iterdir()] == ["ab12.json"]


def test_a_known_mapping_is_read_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = problem(1, 5, 4, 4, 4, 1, 1)
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path / "one"))
    mapping = solve(asked, "native")
    stored = next((tmp_path / "one").rglob("*.json"))
    copy = tmp_path / "two" / stored.relative_to(tmp_path / "one")
    copy.parent.mkdir(parents=True)
    copy.write_text(stored.read_text().replace('"nest": [', '"nest": ["read", '))
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path / "two"))
    assert solve(asked, "native").nest == ("read", *mapping.nest)
