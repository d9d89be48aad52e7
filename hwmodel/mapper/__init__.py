"""Searches how a layer runs best on an array: unrolling, tiles, loop order and bypass."""

from __future__ import annotations

from hwmodel.mapper.mapping import Mapping
from hwmodel.mapper.solve import solve

__all__ = ["Mapping", "solve"]
