"""``python -m smallpebble bench``: compiled kernels and two nets, timed against the reference.

How accurate the convolutions are is shown as well (`accuracy.py`).

Everything that is compared takes turns, round by round, so that a busy machine slows all of them
and not one. NumPy's matrix products and other libraries leave threads spinning for some 30 ms:
before each sample there is a pause for these to fall asleep, and an untimed call.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

import smallpebble as sp
from smallpebble import config
from smallpebble.datasets import load_data
from smallpebble.kernels import catalogue

from . import DTYPES, CommandError, accuracy, check_tier, files, models, plot
from .progress import open_progress
from .workers import Worker, WorkerError, check_peers

SCHEMA = 1
PAUSE = 0.04  # seconds
_PEERS = ("torch", "jax", "tensorflow")
_BUSY = 1.0  # processes that run already
_LONG = 100e6  # floating-point operations
COMPARED_STEPS = 10  # losses drift apart later on: rounding errors grow with every update
_EXAMPLES = 2000  # of real data, from which the nets' batches are drawn
ACCURACY = "accuracy"  # what --only calls that section
_SHORT = {"float32": "f32", "float64": "f64"}


class Net(NamedTuple):
    """A README net: its data, its batch, how many batches, training steps in one sample."""

    build: Callable[..., models.Model]
    title: str
    data: Literal["mnist", "cifar"]
    image_shape: tuple[int, ...]
    batch: int
    n_batches: int
    steps: int


NETS = {
    "readme_mlp": Net(models.readme_mlp, "MNIST net", "mnist", (784,), 200, 20, 20),
    "readme_cnn": Net(models.readme_cnn, "CIFAR CNN", "cifar", (32, 32, 3), 128, 4, 1),
}


class _Settings(NamedTuple):
    tier: str | None  # of compiled kernels; None where there are none
    rounds: int
    sample: float  # seconds that one sample should last at least
    budget: float  # seconds for one row; where the reference is slow there are fewer rounds


def run(args: argparse.Namespace) -> int:
    """Carry out the ``bench`` subcommand."""
    names = _chosen(args.only)
    dtypes = list(dict.fromkeys(args.dtype or DTYPES))
    check_tier(args.tier)
    tier = args.tier or sp.kernels.active()
    json_path = files.writable(args.json, "--json")
    plot_path = plot.check(args.plot)
    if json_path is not None and json_path == plot_path:
        raise CommandError(f"--json and --plot name the same file, {json_path}")
    nets = [name for name in names if name in NETS]
    examples = {name: read_examples(NETS[name], args.data) for name in nets}
    rows = [(kernel, *row, dtype) for kernel, row in _kernel_rows(names) for dtype in dtypes]
    settings = _Settings(
        tier=None if tier == "reference" else tier,
        rounds=args.rounds or (3 if args.quick else 7),
        sample=0.002 if args.quick else 0.01,
        budget=1.0 if args.quick else 6.0,
    )

    judge = ACCURACY in names and settings.tier is not None
    judged = [dtype for dtype in dtypes if judge and accuracy.can_judge(dtype)]
    gate = [(name, dtype) for name in accuracy.KERNELS for dtype in judged]
    zoo = [(name, inputs, dtype) for name, dtype in gate for inputs in accuracy.INPUTS]

    kernel_results, net_results, gate_results, zoo_results = [], [], [], []
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(_threads(args.threads, tier))
        peers = _start_peers(stack, args.peer or [], args.no_peers, threads) if nets else []
        print(
            f"SmallPebble {sp.__version__}, NumPy {np.__version__}, {tier} kernels, "
            f"threads: {threads}"
        )
        if hasattr(os, "getloadavg") and os.getloadavg()[0] > _BUSY:
            print(
                f"This machine is busy (load {os.getloadavg()[0]:.1f}): the times will be too "
                "long, those of NumPy's matrix products most of all.",
                file=sys.stderr,
            )
        total = len(rows) + 2 * len(nets) * len(dtypes) + len(gate) + len(zoo)
        progress = stack.enter_context(open_progress(total, "row"))
        if rows:
            progress.print(_ABOUT_KERNELS)
        for kernel, label, make, work, dtype in rows:
            result = _time_kernel(kernel, label, make, work, dtype, settings)
            kernel_results.append(result)
            progress.print(_kernel_line(result))
            progress.update(len(kernel_results), kernel.name)
        if nets:
            progress.print(_ABOUT_NETS)
        for name in nets:
            for dtype in dtypes:
                for result in _time_net(name, dtype, examples[name], settings, peers):
                    net_results.append(result)
                    progress.print("\n".join(_net_lines(result)))
                    progress.update(len(kernel_results) + len(net_results), name)
        done = total - len(gate) - len(zoo)
        if gate:
            progress.print(_ABOUT_GATE)
        for name, dtype in gate:
            gate_results += accuracy.at_gate(name, dtype, [tier])
            progress.print(_gate_line(gate_results[-1]))
            progress.update(done + len(gate_results), ACCURACY)
        if zoo:
            progress.print(_ABOUT_ZOO)
        for name, inputs, dtype in zoo:
            zoo_results += accuracy.over_zoo(name, inputs, dtype, [tier])
            progress.print(_zoo_line(zoo_results[-1]))
            progress.update(done + len(gate) + len(zoo_results), ACCURACY)
    if judge and len(judged) < len(dtypes):
        print("\nThe accuracy of float64 was not measured: long double is no wider here.")
    if settings.tier is None:
        print("\nOnly the NumPy reference was timed: there are no compiled kernels in use.")

    if json_path is not None:
        report = {
            "schema": SCHEMA,
            "smallpebble": sp.__version__,
            "tier": tier,
            "threads": threads,
            "rounds": settings.rounds,
            "config": sp.show_config(mode="dict"),
            "kernels": kernel_results,
            "nets": net_results,
            "accuracy": {"gate": gate_results, "zoo": zoo_results},
        }
        files.write_json(json_path, report)
        print(f"Figures: {json_path}")
    if plot_path is not None:
        bars = _bars(kernel_results, net_results)
        if bars:
            title = f"{tier} kernels against their NumPy reference, threads: {threads}"
            plot.speedups(plot_path, title, bars)
            print(f"Picture: {plot_path}")
        else:
            print("No picture: there is no speed-up to draw.")
    return 0


def _chosen(only: list[str] | None) -> list[str]:
    known = [*catalogue.KERNELS, *NETS, ACCURACY]
    for name in only or []:
        if name not in known:
            raise CommandError(f"--only: {name!r} is unknown: choose from {', '.join(known)}")
    return [name for name in known if not only or name in only]


def _kernel_rows(names: list[str]) -> Iterator[tuple[Any, tuple]]:
    for name in names:
        if name in catalogue.KERNELS:
            for row in catalogue.KERNELS[name].bench:
                yield catalogue.KERNELS[name], row


@contextlib.contextmanager
def _threads(wanted: int | None, tier: str) -> Iterator[int]:
    """Use `wanted` threads inside of the block; yields how many all contenders are to use."""
    before = config.get_num_threads()
    if wanted is not None:
        try:
            config.set_num_threads(wanted)
        except ValueError as error:
            raise CommandError(f"--threads: {error}") from None
    try:
        # NumPy's matrix products take every processor, which the others then may, too.
        yield wanted or (_processors() if tier == "reference" else config.get_num_threads())
    finally:
        if wanted is not None:
            config.set_num_threads(before)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- timing ----


class _Contender(NamedTuple):
    """What is timed: ``call(n)`` does the work n times and returns the seconds that it took."""

    call: Callable[[int], float]
    settle: bool  # it leaves threads spinning


def _timed(function: Callable[[], object]) -> Callable[[int], float]:
    def call(n: int) -> float:
        started = time.perf_counter()
        for _ in range(n):
            function()
        return time.perf_counter() - started

    return call


def _interleave(contenders: dict[str, _Contender], settings: _Settings) -> dict[str, list[float]]:
    """Seconds per call of each contender, one sample a round, the order moving on every round."""
    repeats, cost = {}, 0.0
    for name, contender in contenders.items():
        contender.call(1)
        seconds = max(contender.call(1), 1e-9)
        repeats[name] = max(1, min(100_000, math.ceil(settings.sample / seconds)))
        cost += (repeats[name] + 1) * seconds + PAUSE
    rounds = settings.rounds
    if cost * rounds > settings.budget:
        rounds = max(min(3, rounds), int(settings.budget / cost))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            contender = contenders[name]
            contender.call(1)
            samples[name].append(contender.call(repeats[name]) / repeats[name])
            if contender.settle:
                time.sleep(PAUSE)
        order.append(order.pop(0))
    return samples


def _time_kernel(kernel, label: str, make, work, dtype: str, settings: _Settings) -> dict:
    """Errors and times of one kernel on one row of the catalogue."""

    def arguments():
        return make(np.random.default_rng(0), np.dtype(dtype))

    def contender(function, settle: bool) -> _Contender:
        args = arguments()  # of its own: a kernel may write into some of them
        return _Contender(_timed(lambda: function(*args)), settle)

    amount, unit = work(arguments())
    result = {"kernel": kernel.name, "case": label, "dtype": dtype, "amount": amount, "unit": unit}
    contenders = {"reference": contender(kernel.oracle, True)}
    if settings.tier is not None:
        function = getattr(sp.kernels.load(settings.tier), kernel.name)
        long = unit == "flop" and amount > _LONG
        result |= _errors(kernel, function, arguments(), np.dtype(dtype), long)
        contenders["compiled"] = contender(function, False)
    samples = _interleave(contenders, settings)
    result["reference_ms"] = _median_ms(samples["reference"])
    if "compiled" in samples:
        result["compiled_ms"] = _median_ms(samples["compiled"])
        result["speedup"] = result["reference_ms"] / result["compiled_ms"]
    fastest = result.get("compiled_ms", result["reference_ms"])
    result["rate"] = amount / fastest / 1e6  # 1e9 a second
    result["samples_ms"] = {name: [1e3 * s for s in some] for name, some in samples.items()}
    return result


def _errors(kernel, function, args: tuple, dtype: np.dtype, long: bool = False) -> dict:
    """The largest error, as a fraction of its bound, and as it is.

    `long` says that the reference would take long in a wider dtype than float64.
    """
    expected = catalogue.expect(kernel, args, dtype, wide=np.float64 if long else None)
    got = kernel.run(function, args)
    largest = 0.0
    for array, (value, _) in zip(got, expected):
        if array.size and array.shape == value.shape and value.dtype.kind == "f":
            largest = max(largest, float(np.max(np.abs(array.astype(value.dtype) - value))))
    fraction = catalogue.compare(kernel, got, args, dtype, expected)
    return {"error_of_bound": fraction, "error": largest}


def _median_ms(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


# ---- the two nets ----


class _Local:
    """A README net in this process, with the kernels of one tier."""

    def __init__(self, name: str, tier: str, net: Net, dtype: str) -> None:
        self.name, self.tier, self.build, self.dtype = name, tier, net.build, dtype

    def net(self, net: str, data: Batches) -> None:
        self.data = data
        self.model = self.build(dtype=self.dtype)
        for variable, array in zip(self.model.parameters.values(), data.parameters):
            variable.array = array.copy()
        self.adam = sp.Adam()

    def train(self, first: int, n: int) -> tuple[float, list[float]]:
        with sp.use_kernels(self.tier):
            started = time.perf_counter()
            losses = [self.model.train_step(self.adam, x, y) for x, y in self.data.some(first, n)]
            return time.perf_counter() - started, losses

    def evaluate(self, first: int, n: int) -> float:
        with sp.use_kernels(self.tier):
            started = time.perf_counter()
            for x, _ in self.data.some(first, n):
                self.model.predict(x)
            return time.perf_counter() - started


class Batches(NamedTuple):
    """What all contenders are given: initial parameters, and batches to take in turn."""

    parameters: list[np.ndarray]
    images: np.ndarray  # (batches, n, ...)
    labels: np.ndarray  # (batches, n)

    def some(self, first: int, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in range(first, first + n):
            yield self.images[i % len(self.images)], self.labels[i % len(self.images)]

    def save(self, path: str) -> None:
        parameters = {f"parameter{i}": p for i, p in enumerate(self.parameters)}
        arrays: dict[str, Any] = {"images": self.images, "labels": self.labels, **parameters}
        np.savez(path, **arrays)

    def give(self, worker: Worker, net: str) -> None:
        """Let a worker of `peers.py` build `net` with these parameters, and use these batches."""
        path = os.path.join(worker.folder, "net.npz")
        self.save(path)
        worker.ask({"do": "net", "net": net, "file": path})


def read_examples(
    net: Net, folder: str | None, most: int = _EXAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Images scaled to 0..1, and labels: up to `most` real ones from `folder`, or random ones."""
    if folder is None:
        rng = np.random.default_rng(0)
        images = rng.random((_EXAMPLES, *net.image_shape), np.float32)
        return images, rng.integers(0, models.N_CLASSES, _EXAMPLES)
    if not os.path.isfile(os.path.join(folder, f"{net.data}.npz")):
        raise CommandError(f"--data: there is no {net.data}.npz in {folder}")
    try:
        X, y, _, _ = load_data(net.data, savedir=folder)
    except (OSError, ValueError) as error:
        raise CommandError(f"--data: {error}") from None
    images = X[:most].reshape(-1, *net.image_shape)
    return images / np.float32(255), y[:most].astype(np.int64)


def batches(
    net: Net, dtype: str, examples: tuple[np.ndarray, np.ndarray], seed: int = 1
) -> Batches:
    """Batches drawn from `examples`, and initial parameters: the same at every call."""
    images, labels = examples
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(images), (net.n_batches, net.batch))
    model = net.build(dtype=dtype, rng=rng)
    parameters = [variable.array for variable in model.parameters.values()]
    return Batches(parameters, images[chosen].astype(dtype), labels[chosen])


def _time_net(
    name: str, dtype: str, examples: tuple, settings: _Settings, peers: list[_Peer]
) -> list[dict]:
    """Training steps and evaluation batches of one README net, by all contenders."""
    net = NETS[name]
    data = batches(net, dtype, examples)
    contenders: list[Any] = [_Local("NumPy reference", "reference", net, dtype)]
    if settings.tier is not None:
        contenders.append(_Local(f"compiled, {settings.tier}", settings.tier, net, dtype))
    contenders += peers
    figures = {c: {"name": c.name, "train": [], "evaluate": [], "losses": []} for c in contenders}

    def turn(contender: Any, first: int) -> None:
        """One untimed and `net.steps` timed steps, and as many evaluations."""
        mine = figures[contender]
        mine["losses"] += contender.train(first, 1)[1]
        seconds, losses = contender.train(first + 1, net.steps)
        mine["train"].append(seconds / net.steps)
        mine["losses"] += losses
        time.sleep(PAUSE)
        contender.evaluate(first, 1)
        mine["evaluate"].append(contender.evaluate(first + 1, net.steps) / net.steps)
        time.sleep(PAUSE)

    def attempt(action: Callable[..., None], contender: Any, *args: Any) -> None:
        if "failed" not in figures[contender]:
            try:
                action(contender, *args)
            except WorkerError as error:
                figures[contender]["failed"] = str(error)

    for contender in contenders:
        attempt(lambda c: c.net(name, data), contender)
        attempt(turn, contender, 0)  # compilers compile, allocators fill
    for contender in contenders:
        figures[contender] |= {"train": [], "evaluate": []}
    order = list(contenders)
    for i in range(1, settings.rounds + 1):
        for contender in order:
            attempt(turn, contender, i * (net.steps + 1))
        order.append(order.pop(0))

    flops = dict(zip(("train", "evaluate"), models.readme_flops(name, net.batch)))
    return [
        _net_result(name, dtype, work, flops[work], [figures[c] for c in contenders], settings)
        for work in ("train", "evaluate")
    ]


def _net_result(
    name: str, dtype: str, work: str, flops: int, figures: list[dict], settings: _Settings
) -> dict:
    reference = np.array(figures[0]["losses"][:COMPARED_STEPS])
    rows: list[dict] = []
    for mine in figures:
        row: dict = {"name": mine["name"]}
        if "failed" in mine or not mine[work]:
            rows.append(row | {"failed": mine.get("failed", "nothing was measured")})
            continue
        row["ms"] = _median_ms(mine[work])
        row["rate"] = flops / row["ms"] / 1e6
        row["samples_ms"] = [1e3 * s for s in mine[work]]
        if work == "train":
            losses = np.array(mine["losses"][:COMPARED_STEPS])
            row["first_losses"] = losses.tolist()
            row["loss_error"] = float(np.max(np.abs(losses - reference)))
            row["loss_error_relative"] = float(np.max(np.abs(losses / reference - 1)))
        rows.append(row)
    result = {
        "net": name,
        "title": NETS[name].title,
        "work": work,
        "dtype": dtype,
        "batch": NETS[name].batch,
        "amount": flops,
        "unit": "flop",
        "contenders": rows,
    }
    if settings.tier is not None:
        result["speedup"] = rows[0]["ms"] / rows[1]["ms"]
    return result


# ---- other libraries ----


class _Peer(Worker):
    """A worker that trains and evaluates the nets with another library."""

    def net(self, net: str, data: Batches) -> None:
        data.give(self, net)

    def train(self, first: int, n: int) -> tuple[float, list[float]]:
        answer = self.ask({"do": "train", "first": first, "n": n})
        return answer["seconds"], answer["losses"]

    def evaluate(self, first: int, n: int) -> float:
        return self.ask({"do": "evaluate", "first": first, "n": n})["seconds"]


def _start_peers(
    stack: contextlib.ExitStack, asked: list[tuple[str, str]], none_here: bool, threads: int
) -> list[_Peer]:
    """Workers for the libraries asked for, and for those that this interpreter has."""
    wanted = [(*one, True) for one in check_peers(asked, ("smallpebble-3.0.5", *_PEERS))]
    if not none_here:
        for library in _PEERS:
            if importlib.util.find_spec(library) is not None:
                wanted.append((library, library, sys.executable, False))
    peers: list[_Peer] = []
    if wanted:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="smallpebble-"))
    for name, library, python, was_asked in wanted:
        print(f"Starting {name} ...", file=sys.stderr, flush=True)
        try:
            peer = _Peer(library, python, threads, folder)
        except WorkerError as error:
            if was_asked:
                raise CommandError(f"--peer {name}: {error}") from None
            print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            stack.callback(peer.close)
            peers.append(peer)
    return peers


# ---- what is shown ----

_ABOUT_NETS = (
    "\nloss error: largest difference from the reference's losses in the first "
    f"{COMPARED_STEPS} steps"
)
_ABOUT_KERNELS = (
    "err/bound: largest error as a fraction of the proven bound, above 1 is wrong\n\n"
    f"{'kernel':34}{'case':42}{'':4}{'NumPy ms':>9}{'compiled':>9}{'speed-up':>9}"
    f"{'err/bound':>10}{'error':>9}  rate"
)


_ABOUT_GATE = f"""
Accuracy of the convolutions. u: unit roundoff; |a||b|: the kernel on absolute values.

Direct kernels, results of 48x48 sums of up to 16,384 standard normal products.
largest error in u|a||b|: of the middle one of {accuracy.DRAWS} draws, {accuracy.GATE} or less at \
every length; of all draws

{"":28}{"compiled":>14}{"NumPy":>14}
{"":28}{"middle":>7}{"all":>7}{"middle":>7}{"all":>7}{"err/bound":>11}"""
_ABOUT_ZOO = f"""
Direct kernels and Winograd's algorithm, several shapes.
err: largest error of the direct kernel; direct, Winograd: largest error relative to the largest
number of a result; ratio: of these two, should be {accuracy.GOAL} at most; worst: their ratio for \
the worst shape

{"":24}{"inputs":18}{"":4}{"err/bound":>10}{"err/u|a||b|":>12}{"direct":>9}{"Winograd":>9}{"ratio":>7}\
{"worst":>7}"""


def _gate_line(row: dict) -> str:
    return (
        f"{row['kernel']:24}{_SHORT[row['dtype']]:4}{row['error_in_u']:7.2f}"
        f"{row['most_in_u']:7.2f}{row['numpy_error_in_u']:7.2f}{row['numpy_most_in_u']:7.2f}"
        f"{number(row['error_of_bound']):>11}"
    )


def _zoo_line(row: dict) -> str:
    line = (
        f"{row['kernel']:24}{row['inputs']:18}{_SHORT[row['dtype']]:4}"
        f"{number(row['error_of_bound']):>10}{row['error_in_u']:12.2f}{row['direct']:9.1e}"
    )
    if "winograd" in row:
        line += f"{row['winograd']:9.1e}{row['ratio']:7.2f}{row['worst_ratio']:7.2f}"
    return line


def _kernel_line(result: dict) -> str:
    unit = {"flop": "GFLOP/s", "byte": "GB/s"}[result["unit"]]
    compiled = "".join(
        f"{text:>{width}}"
        for text, width in (
            (number(result.get("compiled_ms")), 9),
            (number(result.get("speedup"), "x"), 9),
            (number(result.get("error_of_bound")), 10),
            ("-" if "error" not in result else f"{result['error']:.1e}", 9),
        )
    )
    return (
        f"{result['kernel']:34}{result['case'][:41]:42}{_SHORT[result['dtype']]:4}"
        f"{number(result['reference_ms']):>9}{compiled}  {number(result['rate'])} {unit}"
    )


def _net_lines(result: dict) -> Iterator[str]:
    work = {"train": "training step", "evaluate": "evaluation"}[result["work"]]
    what = f"{result['title']} ({result['net']}), {work}"
    yield f"\n{what}, batch {result['batch']}, {result['dtype']}"
    rows = result["contenders"]
    ours = next((row["ms"] for row in rows if row["name"].startswith("compiled")), None)
    losses = f"{'loss error':>12}{'relative':>10}" if result["work"] == "train" else ""
    yield f"  {'':22}{'ms':>8}{'GFLOP/s':>9}{'ms/compiled':>13}{losses}"
    for row in rows:
        if "failed" in row:
            yield f"  {row['name']:22} failed: {row['failed']}"
            continue
        relative = None if ours is None else row["ms"] / ours
        line = f"  {row['name']:22}{number(row['ms']):>8}{number(row['rate']):>9}"
        line += f"{number(relative):>13}"
        if "loss_error" in row and row is not rows[0]:
            line += f"{row['loss_error']:>12.1e}{row['loss_error_relative']:>10.1e}"
        yield line


def number(value: float | None, suffix: str = "") -> str:
    """Three digits, and no exponent for what is measured in practice."""
    if value is None:
        return "-"
    if not math.isfinite(value) or (value != 0 and not 1e-4 <= abs(value) < 1e6):
        return f"{value:.2g}{suffix}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:.{max(0, min(6, digits))}f}{suffix}"


def _bars(kernel_results: list[dict], net_results: list[dict]) -> list[tuple[str, float]]:
    bars = []
    for result in net_results + kernel_results:
        if "speedup" in result:
            if "net" in result:
                label = f"{result['title']}, {result['work']}"
            else:
                label = f"{result['kernel']} {result['case']}"[:60]
            bars.append((f"{label}, {_SHORT[result['dtype']]}", result["speedup"]))
    return bars
