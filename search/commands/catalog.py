"""``tasks`` and ``accelerators``: what there is."""

from __future__ import annotations

import argparse

from search.commands._shared import Verbs
from search.commands._shared import add_json
from search.commands._shared import add_verb
from search.commands._shared import print_json


def add_verbs(verbs: Verbs) -> None:
    """Declare ``tasks`` and ``accelerators``."""
    tasks = add_verb(verbs, "tasks", _tasks, "networks and data that can be named")
    accelerators = add_verb(verbs, "accelerators", _accelerators, "accelerators that can be named")
    accelerators.add_argument(
        "--show", metavar="NAME", help="print the YAML of one, to start your own from"
    )
    for parser in (tasks, accelerators):
        add_json(parser)


def _tasks(args: argparse.Namespace) -> None:
    from envs.tasks import task_names

    tasks = [{"name": name, "description": text} for name, text in task_names()]
    if args.json:
        print_json({"tasks": tasks})
        return
    for task in tasks:
        print(f"{task['name']:<20} {task['description']}")


def _accelerators(args: argparse.Namespace) -> None:
    from hwmodel import load_accelerator
    from hwmodel import preset_names

    if args.show is not None:
        _show(args.show, args.json)
        return
    loaded = [(name, load_accelerator(name)) for name in preset_names()]
    accelerators = [
        {
            "name": name,
            "description": item.describe,
            "dataflow": item.array.dataflow,
            "multipliers": item.array.multipliers,
            "buffer_bytes": item.buffer_bytes,
            "clock_hz": item.clock_hz,
        }
        for name, item in loaded
    ]
    if args.json:
        print_json({"accelerators": accelerators})
        return
    for entry in accelerators:
        print(f"{entry['name']:<20} {entry['description']}")


def _show(name: str, as_json: bool) -> None:
    from hwmodel import load_accelerator
    from hwmodel import preset_text

    text = preset_text(name)
    if as_json:
        print_json(load_accelerator(name).model_dump(mode="json"))
    else:
        print(text, end="")
