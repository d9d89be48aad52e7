"""Plain data from YAML, and models from it, with one line for the user where they are not right."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from collections.abc import Sequence
from types import NoneType
from typing import Any
from typing import TypeVar
from typing import get_args

import yaml
from pydantic import BaseModel
from pydantic import ValidationError

from hwmodel.errors import InputError

Model = TypeVar("Model", bound=BaseModel)

_STANDING_FOR_OTHERS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")


class _Loader(yaml.SafeLoader):
    """As the safe loader, but of a key that is there twice the last value does not silently win."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        # Before merge keys give way to what they stand for, which a key of one's own may override.
        node = super().compose_mapping_node(anchor)
        seen: list[object] = []
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):  # the safe loader takes no other keys
                continue
            # "<<" and "=" are no values of their own.
            stands_for_others = key_node.tag in _STANDING_FOR_OTHERS
            key = key_node.value if stands_for_others else self.construct_object(key_node)
            if key in seen:
                problem = f"{key!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.append(key)
        return node


def parse_yaml(text: str, source: str) -> Any:
    """Plain data from YAML text; ``source`` names it in errors.

    Raises:
        InputError: it is not YAML, or has a key twice; names the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        lines = text.splitlines() or [""]
        content = lines[min(line, len(lines) - 1)]
        allowed = f"use valid YAML ({error.problem})"
        raise InputError(f"{source}, line {line + 1}", content.strip(), allowed) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        allowed = f"use valid YAML ({(str(error).splitlines() or [type(error).__name__])[0]})"
        raise InputError(source, "its content", allowed) from None


def validated(model: type[Model], field: str, data: object) -> Model:
    """The model that plain data stand for.

    Args:
        model: Its class.
        field: What the data as a whole are called.
        data: The data.

    Raises:
        InputError: they are no mapping, have an unknown key, lack one, or a value is not allowed.
            ``field`` is the dotted path of the first.
    """
    if not isinstance(data, Mapping):
        raise InputError(field, data, f"use a mapping with keys {', '.join(model.model_fields)}")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise _first_error(model, error) from None


def _first_error(model: type[BaseModel], error: ValidationError) -> InputError:
    """The first error as an InputError whose field is the dotted path, lists as ``[0]``.

    Unknown keys come first: a misspelt key also makes the right one seem to be missing.
    """
    errors = error.errors(include_url=False)
    first: Any = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    path = _dotted(first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        inner = cause.field.removeprefix(".")
        separator = "." if inner and not inner.startswith("[") else ""
        return InputError(f"{path}{separator}{inner}".strip("."), cause.value, cause.allowed)
    if first["type"] == "extra_forbidden":
        section, key = _section(model, first["loc"][:-1]), str(first["loc"][-1])
        known = list(section.model_fields)
        similar = [name for name in known if name.startswith(key)]
        similar = similar or difflib.get_close_matches(key, known, n=1)
        meant = f"did you mean {similar[0]}? " if similar else ""
        return InputError(path, first["input"], f"{meant}{_known_keys(section)}")
    if first["type"] == "missing":
        return InputError(path, None, "this key is required")
    if first["type"] == "model_type":
        keys = _known_keys(_section(model, first["loc"]))
        return InputError(path, first["input"], f"use a mapping; {keys}")
    if first["type"] == "too_short":
        return InputError(path, first["input"], "name at least one")
    if first["type"] in ("tuple_type", "list_type"):
        return InputError(path, first["input"], "use a list, such as [1, 2]")
    message = first["msg"].replace("Input should", "it should", 1)
    if first["type"] == "float_type" and _is_number(first["input"]):
        message = f"write {float(first['input'])!r}: without a point YAML takes it for text"
    return InputError(path, first["input"], message)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _dotted(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _section(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    for part in location:
        if isinstance(part, int):  # an item of a list, whose section was found already
            continue
        annotation = model.model_fields[str(part)].annotation
        # Of ``Section | None``, and of lists of sections, the section.
        model = next((item for item in get_args(annotation) if item is not NoneType), annotation)  # type: ignore[assignment]
    return model


def _known_keys(section: type[BaseModel]) -> str:
    return f"known keys: {', '.join(section.model_fields)}"
