"""The command ``forethought``: thin modules, one a command, that parse options and call the library."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from forethought import __version__
from forethought.atomic import PLACE
from forethought.data.arguments import MOST_THREADS
from forethought.errors import ForethoughtError

if TYPE_CHECKING:
    from forethought.recommenders.run import Run

GUIDE = """\
Recommenders that think before they rank: from an interaction log to honest recommendations.

a tour in five lines:
  forethought demo                                        everything below on bundled films, in minutes
  forethought data prepare LOG.csv --out DATA             a log becomes a prepared data folder
  forethought train prefergrow/default --data.path DATA   a recipe becomes a run folder
  forethought evaluate RUN                                honest numbers on the held-out test part
  forethought recommend RUN --history "ID,ID,ID"          what comes next

data:
  data prepare    read a log, clean it, split it, write a data folder
  data check      ties, duplicates, leaks, cold targets, popularity: the data doctor
  data embed      read the items' text with a frozen sentence encoder
  data download   fetch a public data set and check its digest

models:
  train           train the model of a recipe; every key can be overridden (--model.dropout 0.2)
  tune            search a recipe's keys on the validation part

results:
  evaluate        rank the test targets of a run
  compare         leaderboard of several runs: table, Markdown, JSON, HTML report
  recommend       the best next items after a history, or for a user
  think           what a model would recommend after each step of its thought
  dial            choose how long a model thinks about whom, and measure what that keeps and saves
  grow            draw how a preference grows from noise
  probe           does it need to think on; steer how popular it recommends

language models that reason:
  strength        predict and steer how long one thinks: collect, analyse, steer, overthink, efficient
  progress        watch how much of a thought is over, and hurry it: generate, prepare, train, intervene, watch
  export          a reasoner or a direction for llama.cpp, a direction as npy

all at once:
  demo            prepare, train, evaluate, compare and report on bundled MovieLens
"""
EPILOG = "'forethought COMMAND --help' tells the options of a command."

COMMANDS = (
    "data", "train", "evaluate", "compare", "recommend", "think", "dial", "grow", "tune", "probe", "strength",
    "progress", "export", "demo",
)  # fmt: skip
# Rounds that a thread of torch's waits for others before it sleeps; by default 300,000, which hold a core for
# milliseconds. Beside a busy process two threads on two cores trained a fifteenth as fast with that; alone, an eighth
# faster.
SPIN = "1000"
_OVERRIDE = re.compile(r"--(?P<key>[A-Za-z_]+(?:\.[A-Za-z0-9_]+)+)(?:=(?P<value>.*))?", re.DOTALL)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # stands for a byte that is not UTF-8


class _Parser(argparse.ArgumentParser):
    """Says a usage error in one line; the usage itself is a page of help away."""

    def error(self, message: str) -> NoReturn:
        hint = f"see '{self.prog} --help'."
        message = printable(message)
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice is not None:
            near = difflib.get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), n=1)
            hint = f"did you mean '{near[0]}'?" if near else hint
        self.exit(2, f"forethought: error: {message}; {hint}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 where the user has to mend something."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on standard error, where the terminal lacks a letter
    try:
        return _run(argv)
    except ForethoughtError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped.", 130)
    except RuntimeError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):  # as DuckDB tells it
            raise
        return _fail("stopped.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; the exit must not fail
        return 0
    except OSError as error:
        if error.errno not in PLACE:
            raise
        place, reason = error.filename or "the output", os.strerror(error.errno or 0)
        return _fail(f"Cannot read or write {place}: {reason}; free the space or choose another place.")


def _run(argv: Sequence[str] | None) -> int:
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported, by the command
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    parser = _parser()
    given = list(sys.argv[1:] if argv is None else argv)
    if broken := next(filter(_SURROGATE.search, given), None):
        parser.error(f"{broken} is not UTF-8 text; rename what it names")
    words, overrides = _take_overrides(parser, given)
    options = parser.parse_args(words)
    for name, default in {"seed": None, "device": None, "threads": None, "quiet": False}.items():
        options.__dict__.setdefault(name, default)  # the flags stand before or after the command
    if overrides and not getattr(options, "takes_overrides", False):
        parser.error(f"unrecognized arguments: --{next(iter(overrides))}")
    for name in ("out", "json", "figure"):
        if getattr(options, name, None) == "":
            parser.error(f"argument --{name}: the path is empty")
    options.overrides = overrides
    if options.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is imported, by the command
    return int(options.run(options) or 0)


def _fail(message: str, code: int = 2) -> int:
    print(f"forethought: error: {printable(message)}", file=sys.stderr)
    return code


def printable(text: str) -> str:
    """The text with what would steer a terminal, or cannot be written at all, spelled out as ``\\x1b`` is."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("options of every command")
    group.add_argument("--seed", type=whole, metavar="N", help="seed of everything random")
    group.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1 …; by default the accelerator, if any, to train, and the CPU for a trained recommender",
    )
    group.add_argument("--threads", type=_threads, metavar="N", help="threads on the CPU")
    group.add_argument("--quiet", action="store_true", help="no progress, only results")
    parser = _Parser(
        "forethought", "forethought COMMAND …", GUIDE, EPILOG, [common],
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"forethought {__version__}")
    subparsers = parser.add_subparsers(
        prog="forethought", dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for name in COMMANDS:
        import_module(f"forethought.cli.{name}").register(subparsers, common)
    return parser


def open_run(options: argparse.Namespace) -> Run:
    """The run that a command names; where it is not finished, and the model an earlier phase's, that is said."""
    from forethought.recommenders.run import Run  # seconds to import

    run = Run.open(options.path, options.device)
    if (status := run.info.get("status", "finished")) != "finished":
        told = f"{options.path} is not finished ({status}); its model is the last that was kept, and --resume goes on."
        print(f"forethought: {printable(told)}", file=sys.stderr)
    return run


def _take_overrides(parser: argparse.ArgumentParser, words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Separate ``--section.key value`` and ``--section.key=value`` from the words argparse is to read."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    remaining = iter(words)
    for word in remaining:
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        value = match["value"] if match["value"] is not None else next(remaining, None)
        if value is None:
            parser.error(f"{word} needs a value")
        overrides[match["key"]] = value
    return rest, overrides


def whole(text: str) -> int:
    """A whole number from 0 to the greatest seed, for an option."""
    number = _number(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 4294967295")
    return number


def positive(text: str) -> int:
    """A whole number of at least 1, for an option."""
    number = _number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _threads(text: str) -> int:
    number = positive(text)
    if number > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST_THREADS}")
    return number


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no whole number") from None
