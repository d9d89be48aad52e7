"""What several verbs do: declare themselves, take a task, print JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from envs.task_spec import TaskSpec
    from search.spec import Spec

Verbs = argparse._SubParsersAction  # what add_subparsers returns; argparse has no public name


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    """Declare a verb that calls ``run`` with its arguments."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=about, description=about, allow_abbrev=False
    )
    parser.set_defaults(run_verb=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document, no more")


def add_task(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Options that name a task."""
    parser.add_argument("--task", required=required, help="name, see 'joulecut tasks'")
    parser.add_argument("--data", help="folder of the data set")
    parser.add_argument("--weights", help="weights file, or hub:OWNER/REPO:ENTRY")


def task_spec(args: argparse.Namespace) -> TaskSpec:
    """The task that the options of :func:`add_task` name."""
    from envs.task_spec import TaskSpec

    return TaskSpec(args.task, data=args.data, weights=args.weights)


def check_spec(spec: Spec) -> Mapping[str, bytes] | None:
    """Refuse what can be known to fail before there is a directory, but for the task.

    Returns:
        Files of the policies that the run starts from, see ``initial_policies``.

    Raises:
        InputError: the accelerator or the earlier run is not as it should be, or Optuna is missing.
    """
    from hwmodel import load_accelerator
    from search.optuna_proposer import require_optuna
    from search.warm_start import initial_policies

    load_accelerator(spec.accelerator)
    if spec.algorithm.startswith("optuna"):
        require_optuna()
    return initial_policies(spec)


@contextlib.contextmanager
def stdout_for_json(wanted: bool) -> Iterator[None]:
    """Send what libraries print to stderr, so that stdout is the JSON document alone."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON document; numbers that are not finite become null."""
    print(json.dumps(_plain(data), indent=2, allow_nan=False))


def plain_console() -> Console:
    """Prints text as it is: brackets in a path or a message are no markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def print_table(table: Table) -> None:
    """Print a table as wide as it is."""
    from rich.measure import Measurement

    console = plain_console()
    width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(console.width, width)  # a pipe has 80 columns, and would lose cells
    console.print(table)


def print_state(place: str, status: Mapping[str, Any]) -> None:
    """Print where a run or batch is, its state, and why it has that."""
    print(": ".join(filter(None, (place, status["state"], status["message"]))))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy, arrays and scalars
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
