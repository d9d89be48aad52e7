"""docs/accelerators.md names every field that a file may have."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from hwmodel import parts
from hwmodel import preset_names
from hwmodel.accelerator import Accelerator

MANUAL = (Path(__file__).parents[2] / "docs" / "accelerators.md").read_text()
MODELS = [Accelerator] + [
    model
    for _, model in inspect.getmembers(parts, inspect.isclass)
    if issubclass(model, parts.Part) and model is not parts.Part
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_manual_names_every_field(model: type[parts.Part]) -> None:
    words = set(MANUAL.replace("`", " ").replace(".", " ").replace(",", " ").split())
    assert set(model.model_fields) <= words


def test_the_manual_names_every_preset() -> None:
    assert [name for name in preset_names() if f"`{name}`" not in MANUAL] == []
