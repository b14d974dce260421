"""What the scripts of this folder share: contenders, their turns, tables, and the end of a run.

Every contender works in a process of its own (`smallpebble/cli/workers.py`), one at a time, and
all take turns. After each sample there is a pause, until the threads of the contender have gone to
sleep: those of OpenBLAS spin for some 26 ms. A sample during which the system took a processor
away more than a handful of times is taken again, at most twice, and the one with the fewest
interruptions counts; that goes for all contenders alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

import smallpebble as sp
from smallpebble.cli import CommandError, count, files, peer
from smallpebble.cli.bench import PAUSE
from smallpebble.cli.workers import Worker, WorkerError, check_peers

SCHEMA = 1
HANDFUL = 5  # interruptions of a sample that is kept at once
_AGAIN = 2  # times that a sample is taken again


def parser(description: str, peers: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments that all scripts have."""
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = made.add_argument
    add(
        "--peer",
        type=peer,
        metavar="NAME=PYTHON",
        action="append",
        default=[],
        help=f"a library ({', '.join(peers)}) and the interpreter that has it (repeatable)",
    )
    add(
        "--python",
        metavar="PYTHON",
        help="the interpreter that has SmallPebble (default: the one that runs this script)",
    )
    add("--only", metavar="SUBSTRING", help="only what has this in its name")
    add("--rounds", type=count, metavar="N", help="how often each contender has its turn")
    add("--json", metavar="FILE", help="write every figure and every sample")
    made.set_defaults(known_peers=tuple(peers))
    return made


def chosen(names: Iterable[str], only: str | None) -> list[str]:
    """The names with `only` in them; a CommandError where there is none."""
    names = list(names)
    found = [name for name in names if only is None or only in name]
    if not found:
        raise CommandError(
            f"--only: nothing has {only!r} in its name; there is: {'; '.join(names)}"
        )
    return found


class Contenders:
    """SmallPebble and its peers, each in a process: a context, that ends them.

    Parameters
    ----------
    args : of `parser`
    threads : that each contender may use
    requests : file with further requests to the workers
    environment : variables for SmallPebble's worker

    Attributes
    ----------
    workers : by name; SmallPebble is the first
    failed : by name, why a worker could not go on
    """

    def __init__(
        self,
        args: argparse.Namespace,
        threads: int,
        requests: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.ours = "SmallPebble"
        self.failed: dict[str, str] = {}
        self.repeated: Counter[str] = Counter()
        self.workers: dict[str, Worker] = {}
        wanted = check_peers(args.peer, args.known_peers)
        own = dict(environment or {})
        if args.python is None:
            own["PYTHONPATH"] = str(Path(sp.__file__).parents[1])
            python = sys.executable
        else:
            ((_, _, python),) = check_python(args.python)
        self._stack = contextlib.ExitStack()
        try:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="smallpebble-"))
            self._start(self.ours, Worker, ("smallpebble", python, threads, folder, requests, own))
            for name, library, path in wanted:
                self._start(f"--peer {name}", Worker, (library, path, threads, folder, requests))
        except BaseException:
            self._stack.close()
            raise

    def _start(self, what: str, make: Callable[..., Worker], arguments: tuple) -> None:
        print(f"Starting {what.removeprefix('--peer ')} ...", file=sys.stderr, flush=True)
        try:
            worker = make(*arguments)
        except WorkerError as error:
            raise CommandError(f"{what}: {error}") from None
        self._stack.callback(worker.close)
        name = what if what == self.ours else worker.name
        if name in self.workers:
            raise CommandError(f"{what}: {name} is there already")
        self.workers[name] = worker

    def __enter__(self) -> Contenders:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def names(self) -> list[str]:
        """Those that have not failed."""
        return [name for name in self.workers if name not in self.failed]

    def rivals(self) -> list[str]:
        """Those that SmallPebble is compared with: not its own earlier versions."""
        return [name for name in self.names() if self.workers[name].library != "smallpebble"]

    def ask(self, name: str, request: dict) -> dict | None:
        """The answer of one worker; None if it has failed, now or before."""
        if name in self.failed:
            return None
        try:
            return self.workers[name].ask(request)
        except WorkerError as error:
            self.failed[name] = str(error)
            print(f"{name} failed: {error}", file=sys.stderr)
            return None

    def sample(self, name: str, request: dict) -> dict | None:
        """The answer that came with the fewest interruptions, and a pause."""
        best = None
        for attempt in range(1 + _AGAIN):
            answer = self.ask(name, request)
            if answer is None:
                return None
            time.sleep(PAUSE)
            if best is None or answer["interruptions"] < best["interruptions"]:
                best = answer
            if best["interruptions"] <= HANDFUL:
                break
            if attempt < _AGAIN:
                self.repeated[name] += 1
        return best

    def turns(self, rounds: int) -> Iterator[str]:
        """Whose turn it is: everybody's once a round, the order moving on every round."""
        order = self.names()
        time.sleep(PAUSE)  # whoever has just been prepared
        for _ in range(rounds):
            yield from order
            order.append(order.pop(0))

    def about(self) -> dict[str, dict]:
        """What the workers said of themselves."""
        return {name: worker.about for name, worker in self.workers.items()}


def check_python(python: str) -> list[tuple[str, str, str]]:
    """The interpreter of ``--python``, as `check_peers` has it."""
    try:
        return check_peers([("smallpebble", python)], ("smallpebble",))
    except CommandError as error:
        raise CommandError(str(error).replace("--peer", "--python")) from None


def machine() -> dict:
    """What the figures depend on, beside the code."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "smallpebble": sp.__version__,
    }


def _processor() -> str:
    """Its name; on x86 with family and model, as servers of several generations share a name."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = (line.partition(":") for line in file.read().partition("\n\n")[0].split("\n"))
            found = {key.strip(): value.strip() for key, _, value in lines}
    except OSError:
        found = {}
    name = found.get("model name") or platform.processor()
    if "cpu family" in found:
        name += f" (family {found['cpu family']}, model {found['model']})"
    return name


def begin(args: argparse.Namespace) -> tuple[Path | None, dict]:
    """Where the JSON goes, if anywhere, and the report with what is known before the start."""
    path = files.writable(args.json, "--json")
    about = machine()
    print(
        f"{about['processor']}, {about['processors']} processors, load {about['load']}; "
        f"{about['date']}"
    )
    return path, {"schema": SCHEMA, "machine": about}


def finish(path: Path | None, report: dict) -> int:
    """Write the report, if it was asked for."""
    if path is not None:
        files.write_json(path, report)
        print(f"\nFigures: {path}")
    return 0


def say_repeated(repeated: Mapping[str, int]) -> None:
    """How many samples were taken again."""
    texts = [f"{name} {n}" for name, n in repeated.items() if n]
    print(f"\nSamples taken again, for more than {HANDFUL} interruptions: ", end="")
    print(", ".join(texts) or "none")


def geometric_mean(values: Sequence[float]) -> float:
    """The number whose logarithm is the mean logarithm."""
    return float(np.exp(np.mean(np.log(values))))
