"""The command line, ``python -m smallpebble``: train, bench, info, self-test.

``import smallpebble`` imports nothing of it, and each subcommand's module is imported when it runs.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence

EXIT_FAILED = 1
EXIT_WRONG_ARGUMENT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, and below 128 + SIGPIPE, as shells have it
EXIT_BROKEN_PIPE = 141

DATASETS = ("digits", "mnist", "cifar")
DTYPES = ("float32", "float64")


class CommandError(Exception):
    """What went wrong, in a sentence for the user, and the exit code."""

    def __init__(self, message: str, code: int = EXIT_WRONG_ARGUMENT) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of the process) and return its exit code."""

    def command() -> int:
        args = _parser().parse_args(argv)
        return args.run(args)

    return guarded(command)


def guarded(command: Callable[[], int]) -> int:
    """Run `command` and return its exit code.

    A mistake of the user's becomes a sentence on stderr; argparse raises SystemExit for its own.
    Whatever else goes wrong is a bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A path may hold what the terminal's encoding does not.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return command()
        finally:
            # Here rather than at exit, where a broken pipe could no longer be caught.
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
    except CommandError as error:
        print(f"smallpebble: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("\nsmallpebble: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        if not isinstance(error, BrokenPipeError):
            print(f"smallpebble: the output cannot be written: {error.strerror}", file=sys.stderr)
        # The reader has gone (`| head`). Python flushes both streams again at exit.
        devnull = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(devnull, number)
        os.close(devnull)
        return EXIT_BROKEN_PIPE if isinstance(error, BrokenPipeError) else EXIT_FAILED


def _in_module(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        return getattr(importlib.import_module(f"{__name__}.{module}"), function)(args)

    return run


# ---- the arguments ----


def _whole_number(text: str, lowest: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if number < lowest:
        raise argparse.ArgumentTypeError(f"must be {lowest} or more, got {number}")
    return number


def count(text: str) -> int:
    return _whole_number(text, 1)


def _seed(text: str) -> int:
    seed = _whole_number(text, 0)
    if seed >= 2**64:
        raise argparse.ArgumentTypeError(f"must be below 2**64, got {seed}")
    return seed


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text}")
    return number


def peer(text: str) -> tuple[str, str]:
    name, equals, python = text.partition("=")
    if not (name and equals and python):
        raise argparse.ArgumentTypeError(
            f"expected NAME=PYTHON, as in torch=/path/to/python, got {text!r}"
        )
    return name, python


def _parser() -> argparse.ArgumentParser:
    from smallpebble import __version__

    parser = argparse.ArgumentParser(
        prog="python -m smallpebble",
        description="Autodiff and neural networks on NumPy arrays: train a net, time the kernels, "
        "check an installation.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"smallpebble {__version__}")

    def show_help(args: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=show_help)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    _add_train(commands)
    _add_bench(commands)
    _add_info(commands)
    _add_self_test(commands)
    return parser


def _add_command(commands, name: str, run: Callable, help: str, description: str):
    parser = commands.add_parser(name, help=help, description=description, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_train(commands) -> None:
    parser = _add_command(
        commands,
        "train",
        _in_module("train", "run"),
        "train a net on real images",
        "Train a net to classify images, show how it gets on, and measure it on images held out. "
        "Ctrl-C ends the training early: what was asked to be plotted and saved still is. "
        "Steps, batch and rate have defaults that fit the net and the data.",
    )
    add = parser.add_argument
    add("model", choices=("mlp", "cnn"), help="two hidden layers, or a small convolutional net")
    add(
        "--data",
        choices=DATASETS,
        default="digits",
        help="images: digits comes with the package, mnist and cifar are downloaded, or found in "
        "the folder that SMALLPEBBLE_DATA names (default: digits)",
    )
    add("--steps", type=count, metavar="N", help="training steps")
    add("--batch", type=count, metavar="N", help="images per step")
    add("--lr", type=_rate, metavar="X", help="Adam's step size, which falls to 0 at the last step")
    add("--seed", type=_seed, metavar="N", default=0, help="same seed, same net (default: 0)")
    add("--dtype", choices=DTYPES, default="float32", help="numbers to compute in")
    add("--plot", metavar="FILE", help="draw loss and accuracy (.png, .pdf, .svg: by the ending)")
    add("--save", metavar="FILE.npz", help="write the parameters, for numpy.load")


def _add_bench(commands) -> None:
    parser = _add_command(
        commands,
        "bench",
        _in_module("bench", "run"),
        "time the kernels and two nets, measure errors",
        "Time each compiled kernel against its NumPy reference, and two nets (an MLP on MNIST's "
        "shape, a CNN on CIFAR's) against the reference and against other libraries. All take "
        "turns, round by round; medians are shown. torch, jax and tensorflow are measured where "
        "this Python has them. At the end: errors of the convolutions, direct and by Winograd's "
        "algorithm.",
    )
    add = parser.add_argument
    add("--json", metavar="FILE", help="write every figure and every sample")
    add("--plot", metavar="FILE", help="draw the speed-ups (.png, .pdf, .svg: by the ending)")
    add(
        "--only",
        metavar="NAME",
        action="append",
        help="this kernel or net, or accuracy, only (repeatable)",
    )
    add("--dtype", choices=DTYPES, action="append", help="these numbers only (default: both)")
    add("--quick", action="store_true", help="fewer and shorter rounds: a rough picture")
    add("--rounds", type=count, metavar="N", help="rounds (default: 7, with --quick 3)")
    add("--tier", metavar="T", help="compiled kernels to time (default: those in use)")
    add("--threads", type=count, metavar="N", help="threads, for the other libraries as well")
    add(
        "--data",
        metavar="FOLDER",
        help="feed the nets from mnist.npz and cifar.npz in it (default: random numbers)",
    )
    add(
        "--peer",
        type=peer,
        metavar="NAME=PYTHON",
        action="append",
        help="also time the library NAME (torch, jax, tensorflow, smallpebble-3.0.5) of another "
        "Python interpreter (repeatable)",
    )
    add("--no-peers", action="store_true", help="do not look for other libraries in this Python")


def _add_info(commands) -> None:
    def run(args: argparse.Namespace) -> int:
        import smallpebble as sp

        sp.show_config()
        return 0

    text = "show versions, processor, kernels and threads in use, and why"
    _add_command(commands, "info", run, text, text[0].upper() + text[1:] + ".")


def _add_self_test(commands) -> None:
    def run(args: argparse.Namespace) -> int:
        import smallpebble as sp

        check_tier(args.tier)
        return 0 if sp.self_test(tier=args.tier, verbose=True) else EXIT_FAILED

    parser = _add_command(
        commands,
        "self-test",
        run,
        "check every kernel on this machine",
        "Compare every kernel with its NumPy reference on this machine, in seconds. "
        "The exit code is 1 if one of them is wrong.",
    )
    parser.add_argument(
        "--tier",
        metavar="T",
        help="kernels to check (default: all compiled ones that this machine can use)",
    )


def check_tier(tier: str | None) -> None:
    """Raise a CommandError unless the kernels of `tier` can be used here (None always can)."""
    import smallpebble as sp

    if tier is not None:
        try:
            sp.kernels.load(tier)
        except ValueError as error:
            raise CommandError(f"--tier: {error}") from None
