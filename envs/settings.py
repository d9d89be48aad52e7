"""Settings of a whole network: dataclasses of words, written as far as they are no defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING
from typing import TypeVar

from hwmodel.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Settings = TypeVar("_Settings", bound="DataclassInstance")


def check_values(settings: DataclassInstance, allowed: Mapping[str, tuple[str, str]]) -> None:
    """Raise InputError unless all fields match.

    Args:
        settings: The settings.
        allowed: Pattern and description of every field's values.
    """
    for name, (pattern, description) in allowed.items():
        value = getattr(settings, name)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise InputError(name, value, f"use {description}")


def non_defaults(settings: DataclassInstance) -> dict[str, str]:
    """The fields that differ from their defaults."""
    values = {item.name: (getattr(settings, item.name), item.default) for item in fields(settings)}
    return {name: value for name, (value, default) in values.items() if value != default}


def read_settings(kind: type[_Settings], value: object) -> _Settings:
    """Settings from their keys; those left out have their defaults.

    Raises:
        InputError: an unknown key, or a value that is not allowed; names the key.
    """
    if isinstance(value, kind):
        return value
    known = {item.name for item in fields(kind)}
    if not isinstance(value, Mapping):
        raise InputError("", value, f"use a mapping with keys {', '.join(sorted(known))}")
    for key in value:
        if key not in known:
            raise InputError(str(key), value[key], f"known keys: {sorted(known)}")
    return kind(**value)
