"""Bare layers from a CSV file: a network's shapes without the network.

One row is one layer, one column one property; ``COLUMNS`` has their names. ``K``,
``C``, ``F`` and ``N`` are other names for ``out_channels``, ``in_channels``, ``kernel`` and
``batch``, as in the tables that papers about mappers print.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwmodel.errors import InputError
from hwmodel.states import LayerStates
from hwmodel.workload import LayerShape
from hwmodel.workload import Workload

DEFAULT_BITS = 16
"""Width of the published comparisons of mappers."""

LARGEST = 2**31 - 1
"""Of a count: beyond it is a typing error, and doubles would soon lose the ones."""

ALIASES = {
    "layer": "name",
    "K": "out_channels",
    "C": "in_channels",
    "F": "kernel",
    "N": "batch",
}

COUNTS = {
    "in_channels": None,
    "out_channels": None,
    "OFM": None,
    "height": None,
    "width": None,
    **dict.fromkeys(("kernel", "kernel_height", "kernel_width"), 1),
    **dict.fromkeys(("stride", "stride_height", "stride_width"), 1),
    **dict.fromkeys(("padding", "padding_height", "padding_width"), 0),
    **dict.fromkeys(("dilation", "dilation_height", "dilation_width"), 1),
    "groups": 1,
    "batch": 1,
}
"""Columns of whole numbers, and what they are where not given; None: see :func:`_sides`."""

WIDTHS = ("bits", "weight_bits", "activation_bits", "output_bits")
DENSITIES = ("density", "weight_density", "activation_density")
COLUMNS = ("name", *COUNTS, *WIDTHS, *DENSITIES)


@dataclass(frozen=True)
class _Row:
    """One line of the file.

    Attributes:
        where: The file and the line, for errors.
        header: What the file calls each column.
        cells: The texts by column, without those left empty.
    """

    where: str
    header: Mapping[str, str]
    cells: Mapping[str, str]

    def __contains__(self, column: str) -> bool:
        return column in self.cells

    def field(self, column: str) -> str:
        """What an error calls a cell."""
        return f"{self.where}, {self.header.get(column, column)}"

    def count(self, column: str) -> int:
        """A whole number; the column's default where it is not given."""
        default = COUNTS[column]
        if column not in self.cells:
            if default is None:
                raise InputError(self.field(column), None, "it is required")
            return default
        low = 0 if column.startswith("padding") else 1
        value = self._number(column)
        if not (low <= value <= LARGEST and value == int(value)):
            raise self._refuse(column, f"use a whole number from {low} to {LARGEST}")
        return int(value)

    def pair(self, column: str) -> tuple[int, int]:
        """(vertical, horizontal) of a property: its own columns where given, or that of both."""
        both = self.count(column)
        vertical, horizontal = f"{column}_height", f"{column}_width"
        return (
            self.count(vertical) if vertical in self else both,
            self.count(horizontal) if horizontal in self else both,
        )

    def within(self, low: float, high: float, default: float, *columns: str) -> float:
        """The first of the columns that is given, or the default."""
        for column in columns:
            if column in self:
                value = self._number(column)
                if not low <= value <= high:
                    raise self._refuse(column, f"use {low:g} to {high:g}")
                return value
        return default

    def _number(self, column: str) -> float:
        try:
            value = float(self.cells[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self._refuse(column, "use a number")
        return value

    def _refuse(self, column: str, allowed: str) -> InputError:
        return InputError(self.field(column), self.cells[column], allowed)


def read_layers(path: str | Path, bits: int = DEFAULT_BITS) -> tuple[Workload, LayerStates]:
    """Layers that stand for themselves: none feeds another.

    ``height`` and ``width`` are of the input, without ``padding`` (on either side), which is never
    fetched. Where ``OFM``, the side of a square output, is given instead of them, the input is as
    large as the outputs need, less the padding: without a column ``padding`` all of it is fetched,
    as the published comparisons of mappers count.

    Args:
        path: A CSV file in UTF-8 with a header. Required are ``in_channels``, ``out_channels``;
            see ``COLUMNS`` for the others. A layer without sides and kernel is a linear one.
            ``bits`` and ``density`` hold for both operands that have no column of their own;
            outputs are as wide as inputs. Columns of other names are ignored, unless they look
            like a misspelt one.
        bits: Width of the operands of layers that do not say theirs, 1 to 32.

    Returns:
        The layers in the file's order, and their states: one candidate.

    Raises:
        InputError: the file cannot be read or holds no layers, a column is missing, twice there or
            misspelt, or a value is not what its column takes; names the line and the column.
    """
    if not 1 <= bits <= 32:
        raise InputError("bits", bits, "use 1 to 32")
    rows = list(_rows(Path(path)))
    shapes: list[LayerShape] = []
    for row in rows:
        shape = _shape(row, row.cells.get("name", f"layer{len(shapes)}"))
        if shape.name in {known.name for known in shapes}:
            raise InputError(row.field("name"), shape.name, "use every name once")
        shapes.append(shape)
    workload = Workload(Path(path).stem, tuple(shapes))
    return workload, _states(workload, rows, bits)


def _rows(path: Path) -> Iterator[_Row]:
    try:
        # Spreadsheets begin their files with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True, skipinitialspace=True)
            header = [name.strip() for name in next(lines, [])]
            columns = _columns(path, header)
            names = dict(zip(columns, header, strict=True))
            empty = True
            for cells in lines:
                if not any(cell.strip() for cell in cells):
                    continue
                where = f"{path}, line {lines.line_num}"
                if len(cells) != len(header):
                    allowed = f"use as many values as the header has, {len(header)}"
                    raise InputError(where, ",".join(cells), allowed)
                empty = False
                named = zip(columns, (cell.strip() for cell in cells), strict=True)
                yield _Row(where, names, {name: cell for name, cell in named if name and cell})
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("layers", str(path), f"use a readable CSV file ({error})") from None
    if empty:
        raise InputError("layers", str(path), "use a header and a line for each layer")


def _columns(path: Path, header: list[str]) -> list[str]:
    """The columns of ``COLUMNS`` that a header names; empty for those that are ignored."""
    known = (*COLUMNS, *ALIASES)
    columns = []
    for name in header:
        column = ALIASES.get(name, name)
        if column not in COLUMNS:
            similar = difflib.get_close_matches(name, known, n=1)
            if similar:
                allowed = f"did you mean {similar[0]}? columns: {', '.join(known)}"
                raise InputError(f"{path}, column", name, allowed)
            column = ""
        elif column in columns:
            raise InputError(f"{path}, column", name, "use every column once, by one of its names")
        columns.append(column)
    for column, short in (("in_channels", "C"), ("out_channels", "K")):
        if column not in columns:
            allowed = f"a column {column} (or {short}) is required; columns: {', '.join(known)}"
            raise InputError(f"{path}, header", ",".join(header), allowed)
    if "OFM" in columns and {"height", "width"} & set(columns):
        raise InputError(f"{path}, column", "OFM", "use it, or height and width")
    return columns


def _shape(row: _Row, name: str) -> LayerShape:
    spatial = [column for column in ("OFM", "height", "width") if column in row]
    sized = any(column in row for column in ("kernel", "kernel_height", "kernel_width"))
    if bool(spatial) != sized:  # neither is a linear layer
        missing = "kernel" if spatial else "OFM" if "OFM" in row.header else "height"
        raise InputError(row.field(missing), None, "it is required")
    kernel, stride = row.pair("kernel"), row.pair("stride")
    padding, dilation = row.pair("padding"), row.pair("dilation")
    (in_height, out_height), (in_width, out_width) = (
        _sides(
            row,
            side if spatial else None,
            kernel[axis],
            stride[axis],
            padding[axis],
            dilation[axis],
        )
        for axis, side in enumerate(("height", "width"))
    )
    counts = {
        column: row.count(column) for column in ("in_channels", "out_channels", "groups", "batch")
    }
    try:
        return LayerShape(
            name=name,
            in_height=in_height,
            in_width=in_width,
            out_height=out_height,
            out_width=out_width,
            kernel_height=kernel[0],
            kernel_width=kernel[1],
            stride=stride,
            padding=padding,
            dilation=dilation,
            **counts,
        )
    except InputError as error:
        column = error.field.removeprefix(f"{name}.")
        raise InputError(row.field(column), error.value, error.allowed) from None


def _sides(
    row: _Row, side: str | None, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[int, int]:
    """Input and output along one axis, ``side`` being the column of the input's if it has one."""
    reach = (kernel - 1) * dilation + 1
    if "OFM" in row:
        output = row.count("OFM")
        size = (output - 1) * stride + reach - 2 * padding
    else:
        size = row.count(side) if side else 1
        output = (size + 2 * padding - reach) // stride + 1
    if size < 1:
        raise InputError(row.field("padding"), padding, "it leaves nothing of the input")
    if output < 1:
        allowed = f"use a kernel that fits an input of {size} and a padding of {padding}"
        raise InputError(row.field("kernel"), kernel, allowed)
    return size, output


def _states(workload: Workload, rows: list[_Row], bits: int) -> LayerStates:
    weight_bits, activation_bits, output_bits, weight_density, activation_density = (
        np.array([[row.within(low, high, default, *columns) for row in rows]], dtype=np.float64)
        for low, high, default, columns in (
            (1, 32, bits, ("weight_bits", "bits")),
            (1, 32, bits, ("activation_bits", "bits")),
            (1, 32, bits, ("output_bits", "activation_bits", "bits")),
            (0, 1, 1, ("weight_density", "density")),
            (0, 1, 1, ("activation_density", "density")),
        )
    )
    dense = LayerStates.dense(workload)
    return LayerStates(
        in_channels=dense.in_channels,
        out_channels=dense.out_channels,
        weight_density=weight_density,
        activation_density=activation_density,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        output_bits=output_bits,
    )
