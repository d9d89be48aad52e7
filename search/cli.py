"""The command ``joulecut``; docs/cli.md describes every verb and every JSON field."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hwmodel.errors import InputError
from search.commands import batches
from search.commands import catalog
from search.commands import network
from search.commands import pricing
from search.commands import results
from search.commands import searching
from search.failure import RunError

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, like every other bad input, instead of the usage."""
        self.exit(BAD_INPUT, f"joulecut: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: Without the program's name; those of the process by default.

    Returns:
        The exit code: 0; 1 where something broke and 2 for bad input, with one line on stderr; 130
        after Ctrl-C. argparse raises SystemExit with the same codes.
    """
    args = _parser().parse_args(arguments)
    try:
        args.run_verb(args)
    except InputError as error:
        # Raised in a Ray worker it arrives wrapped, with the worker's traceback in its text.
        print(f"joulecut: error: {getattr(error, 'cause', error)}", file=sys.stderr)
        return BAD_INPUT
    except RunError as error:
        print(f"joulecut: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="joulecut",
        description="Finds how to prune and quantize every layer of a trained network so that an "
        "inference costs the least energy.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for module in (searching, batches, results, network, pricing, catalog):
        module.add_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
