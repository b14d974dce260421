"""The two nets of the README against other libraries: time, page faults, memory, loss curves.

One unit of work is a training step and the evaluation of another batch. A net is trained in float32
and float64, with two threads and with one, and the CNN in float32 with SmallPebble's AVX2 kernels
as well. Four fifths of MNIST's pixels are 0, and SmallPebble's products leave these out: the MLP is
also trained on images that have 1/255 there. Contenders (see `contest.py`) get the same batches and
the same initial parameters, and their first losses and the classes that they find are compared.
From the root of a checkout::

    PYTHONPATH=. python benchmarks/training.py --data FOLDER --json training.json \\
        --peer torch=TORCH/bin/python --peer jax=JAX/bin/python --peer tensorflow=TF/bin/python

FOLDER holds mnist.npz and cifar.npz; without it, images are random numbers. ``--curves`` compares
200 training steps with PyTorch's instead of timing anything, from as many starts as ``--rounds``.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from typing import NamedTuple

import contest
import numpy as np

import smallpebble as sp
from smallpebble.cli import CommandError, count, guarded
from smallpebble.cli.bench import NETS, Batches, batches, number, read_examples

PEERS = ("torch", "jax", "tensorflow", "smallpebble-3.0.5")
COMPARED = 5  # losses: they drift apart later on, as rounding errors grow with every update
LONG = 0.7  # seconds of a unit, above which fewer are run
EXAMPLES = 20_000  # of real data, from which batches are drawn
TRAINED = 200  # steps of a loss curve
STARTS = 15  # of each net: how far a rounding error grows differs tenfold between them
EARLY = 20  # of them, before rounding errors have grown as large as they get
FAULTS = 1000  # page faults of a CNN's training step, at most
# Median unit over that of the fastest peer: what must be, and what is aimed at.
TARGETS = {
    ("readme_cnn", "float32"): (0.55, 0.43),
    ("readme_cnn", "float64"): (0.38, 0.30),
    ("readme_mlp", "float32"): (0.70, 0.58),
    ("readme_mlp", "float64"): (0.55, 0.48),
}
ONE_THREAD = (0.10, 0.03)  # on top of these
AVX2 = (0.65, 0.58)  # instead of these
NO_ZEROS = "without zeros"
UNITS = {"readme_mlp": 20, "readme_cnn": 3}  # in one sample
N_BATCHES = {"readme_mlp": 20, "readme_cnn": 10}


class Setting(NamedTuple):
    """What is run side by side."""

    net: str
    dtype: str
    threads: int
    tier: str | None = None  # of SmallPebble's kernels
    pixels: str | None = None  # NO_ZEROS, or those of the data

    def name(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return " ".join(filter(None, (self.net, self.dtype, threads, self.tier, self.pixels)))

    def targets(self) -> tuple[float, float] | None:
        """What must be and what is aimed at, for one thread and two."""
        if self.pixels:
            return None
        if self.tier:
            return AVX2 if self.threads == 2 else None
        must, aim = TARGETS[self.net, self.dtype]
        more = {1: ONE_THREAD, 2: (0.0, 0.0)}.get(self.threads)
        return None if more is None else (round(must + more[0], 2), round(aim + more[1], 2))


def settings(threads: list[int]) -> dict[str, Setting]:
    """All settings, by name."""
    found = [Setting(net, dtype, n) for n in threads for net, dtype in TARGETS]
    found += [Setting("readme_cnn", "float32", n, "avx2") for n in threads if n == 2]
    found += [
        Setting("readme_mlp", dtype, n, pixels=NO_ZEROS)
        for n in threads
        for dtype in ("float32", "float64")
    ]
    return {setting.name(): setting for setting in found}


def main(argv: list[str] | None = None) -> int:
    parser = contest.parser(
        "Time training and evaluation of the README's two nets, side by side with other libraries.",
        PEERS,
    )
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="where mnist.npz and cifar.npz are (default: random)")
    add("--steps", type=count, metavar="N", help="units of work in a sample; steps of --curves")
    add(
        "--threads",
        type=count,
        metavar="N",
        action="append",
        help="threads of each contender (repeatable; default: 2 and 1)",
    )
    add(
        "--curves", action="store_true", help="compare loss curves with PyTorch's, and time nothing"
    )
    args = parser.parse_args(argv)
    path, report = contest.begin(args)
    if args.curves:
        report["curves"] = _curves(args)
        return contest.finish(path, report)
    known = settings(list(dict.fromkeys(args.threads or (2, 1))))
    wanted = [known[name] for name in contest.chosen(known, args.only)]
    examples = {net: _examples(net, args) for net in {setting.net for setting in wanted}}
    report["settings"] = []
    for setting in wanted:
        reason = sp.kernels.tiers()[setting.tier] if setting.tier and args.python is None else None
        if reason is not None:
            print(f"\n{setting.name()} is left out: {setting.tier} is {reason}")
            report["settings"].append({"name": setting.name(), "left_out": reason})
            continue
        data = _given(setting.net, setting.dtype, examples[setting.net], N_BATCHES[setting.net])
        if setting.pixels == NO_ZEROS:
            data = data._replace(images=np.maximum(data.images, data.images.dtype.type(1 / 255)))
        result = _run(setting, data, args)
        report["settings"].append(result)
        print("\n".join(_lines(result)), flush=True)
    _summary(report["settings"])
    return contest.finish(path, report)


def _examples(net: str, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    return read_examples(NETS[net], args.data, EXAMPLES)


def _given(net: str, dtype: str, examples: tuple, n_batches: int, seed: int = 1) -> Batches:
    """Batches and initial parameters: the same numbers in both dtypes, those of float32."""
    data = batches(NETS[net]._replace(n_batches=n_batches), "float32", examples, seed)
    parameters = [p.astype(dtype) for p in data.parameters]
    return Batches(parameters, data.images.astype(dtype), data.labels)


# ---- time ----


def _run(setting: Setting, data: Batches, args: argparse.Namespace) -> dict:
    """All contenders, round by round."""
    environment = {"SMALLPEBBLE_KERNELS": setting.tier} if setting.tier else {}
    with contest.Contenders(args, setting.threads, environment=environment) as contenders:
        figures: dict[str, dict] = {}
        steps, done = {}, {}
        for name in contenders.names():
            figures[name] = mine = {"samples": [], **contenders.workers[name].about}
            mine["memory_before"] = contenders.ask(name, {"do": "memory"})
            with _recorded(contenders, name):
                data.give(contenders.workers[name], setting.net)
            # Compilers compile, allocators fill; and all begin alike, so that losses compare.
            first = contenders.ask(name, {"do": "units", "first": 0, "n": COMPARED})
            if first is None:
                continue
            mine["losses"], mine["classes"] = first["losses"], first["classes"]
            slow = first["train"][-1] + first["evaluate"][-1] > LONG
            steps[name] = 1 if slow else args.steps or UNITS[setting.net]
            done[name] = COMPARED
            if not slow:
                contenders.ask(name, {"do": "units", "first": COMPARED, "n": steps[name]})
        rounds = args.rounds or 15
        for name in contenders.turns(rounds):
            # One more than is counted: the first finds cold caches, and threads that sleep.
            request = {"do": "units", "first": done[name], "n": steps[name] + 1}
            answer = contenders.sample(name, request)
            done[name] += steps[name] + 1
            if answer is not None:
                figures[name]["samples"].append(answer)
        for name in contenders.names():
            figures[name]["memory"] = contenders.ask(name, {"do": "memory"})
        return _result(setting, contenders, figures, rounds)


@contextlib.contextmanager
def _recorded(contenders: contest.Contenders, name: str):
    """Takes down as failed a worker that fails inside of the block."""
    try:
        yield
    except contest.WorkerError as error:
        contenders.failed[name] = str(error)
        print(f"{name} failed: {error}", file=sys.stderr)


def _result(
    setting: Setting, contenders: contest.Contenders, figures: dict[str, dict], rounds: int
) -> dict:
    ours = figures[contenders.ours]
    if contenders.ours in contenders.failed:
        raise CommandError(f"SmallPebble: {contenders.failed[contenders.ours]}", code=1)
    for name, mine in figures.items():
        if name in contenders.failed:
            mine["failed"] = contenders.failed[name]
            continue
        rows = [
            row
            for sample in mine["samples"]
            for row in list(zip(*(sample[k] for k in ("train", "evaluate", "train_faults"))))[1:]
        ]
        mine["train_ms"] = 1e3 * statistics.median(train for train, _, _ in rows)
        mine["evaluate_ms"] = 1e3 * statistics.median(evaluate for _, evaluate, _ in rows)
        mine["unit_ms"] = 1e3 * statistics.median(train + evaluate for train, evaluate, _ in rows)
        mine["train_faults"] = statistics.fmean(faults for _, _, faults in rows)
        mine["repeated"] = contenders.repeated[name]
        mine["loss_difference"] = _difference(mine["losses"], ours["losses"])
        mine["classes_alike"] = float(
            np.mean(np.array(mine["classes"]) == np.array(ours["classes"]))
        )
    result = {
        **setting._asdict(),
        "name": setting.name(),
        "batch": NETS[setting.net].batch,
        "rounds": rounds,
        "contenders": figures,
        "targets": setting.targets(),
    }
    rivals = {name: figures[name]["unit_ms"] for name in contenders.rivals()}
    if rivals:
        result["fastest"] = min(rivals, key=lambda name: rivals[name])
        result["ratio"] = ours["unit_ms"] / rivals[result["fastest"]]
    return result


def _difference(losses: list[float], others: list[float]) -> float:
    """The largest relative difference."""
    return float(np.max(np.abs(np.array(losses) / np.array(others) - 1)))


def _lines(result: dict):
    yield f"\n{result['name']}, batch {result['batch']}: milliseconds, medians"
    yield (
        f"  {'':28}{'unit':>9}{'train':>9}{'evaluate':>9}{'over ours':>10}{'faults':>8}"
        f"{'peak MB':>9}{'before':>8}{'again':>6}{'losses':>9}{'classes':>8}"
    )
    ours = next(iter(result["contenders"].values()))
    for name, mine in result["contenders"].items():
        if "failed" in mine:
            yield f"  {name:28} failed: {mine['failed']}"
            continue
        megabytes = [
            "-" if memory["peak"] is None else f"{memory['peak'] / 1e6:.0f}"
            for memory in (mine["memory"], mine["memory_before"])
        ]
        yield (
            f"  {name:28}{number(mine['unit_ms']):>9}{number(mine['train_ms']):>9}"
            f"{number(mine['evaluate_ms']):>9}{number(mine['unit_ms'] / ours['unit_ms']):>10}"
            f"{mine['train_faults']:>8.0f}{megabytes[0]:>9}{megabytes[1]:>8}"
            f"{mine['repeated']:>6}{mine['loss_difference']:>9.1e}{mine['classes_alike']:>8.1%}"
        )


def _summary(results: list[dict]) -> None:
    print(
        f"""
faults: minor page faults of a training step, the mean. peak: most memory in use, and before there
was a net.
again: samples repeated, for more than {contest.HANDFUL} interruptions.
losses: largest relative difference from SmallPebble's, first {COMPARED} steps.
classes: share of the images of a batch that both take for the same.
"""
    )
    for result in results:
        if result.get("net") == "readme_cnn" and "contenders" in result:
            _memory(result)
    compared = [result for result in results if "ratio" in result]
    if not compared:
        print("\nNo ratios: there is no peer to compare with.")
        return
    print(f"\n{'SmallPebble over the fastest peer':44}{'ratio':>7}{'must':>7}{'aim':>6}")
    for result in compared:
        must, aim = result["targets"] or (None, None)
        verdict = ""
        if must is not None:
            ratio = result["ratio"]
            verdict = "aim reached" if ratio <= aim else "reached" if ratio <= must else "missed"
        print(
            f"{result['name']:44}{number(result['ratio']):>7}{must or '-':>7}{aim or '-':>6}  "
            f"{verdict:12}{result['fastest']}"
        )


def _memory(result: dict) -> None:
    """Page faults and memory of SmallPebble beside what they may be."""
    ours, *others = result["contenders"].items()
    faults = ours[1]["train_faults"]
    text = f"{faults:.0f} page faults: {'fewer' if faults < FAULTS else 'not fewer'} than {FAULTS}"
    torch = [mine for name, mine in others if name.startswith("torch") and "failed" not in mine]
    if torch and torch[0]["memory"]["peak"]:
        share = ours[1]["memory"]["peak"] / torch[0]["memory"]["peak"]
        text += f"; peak memory {share:.2f} of PyTorch's"
    print(f"{result['name']}: {text}")


# ---- loss curves ----


def _curves(args: argparse.Namespace) -> list[dict]:
    """Losses of SmallPebble and PyTorch from the same start, in both dtypes.

    PyTorch's in float32 with another number of threads as well: what it differs from itself, as
    sums are split otherwise. SmallPebble's bits are the same for any number.
    """
    if not any(name.split("-")[0] == "torch" for name, _ in args.peer):
        raise CommandError("--curves: needs --peer torch=PYTHON")
    args.peer = [(name, python) for name, python in args.peer if name.split("-")[0] == "torch"][:1]
    steps, starts = args.steps or TRAINED, args.rounds or STARTS
    threads = (args.threads or [2])[0]
    others = 2 if threads == 1 else 1
    runs = [("float32", threads, ""), ("float64", threads, "")]
    runs += [("float32", others, f", {others} thread{'s' if others > 1 else ''}")]
    results = []
    for net in contest.chosen(NETS, args.only):
        examples = _examples(net, args)
        losses: dict[str, list[list[float]]] = {}  # of each start
        for dtype, n_threads, note in runs:
            with contest.Contenders(args, n_threads) as contenders:
                for seed in range(1, starts + 1):
                    data = _given(net, dtype, examples, steps, seed)
                    for name, worker in contenders.workers.items():
                        if note and worker.library != "torch":
                            continue
                        with _recorded(contenders, name):
                            data.give(worker, net)
                        answer = contenders.ask(name, {"do": "train", "first": 0, "n": steps})
                        if answer is None:
                            raise CommandError(f"{name}: {contenders.failed[name]}", code=1)
                        curve = f"{worker.library} {dtype}{note}"
                        losses.setdefault(curve, []).append(answer["losses"])
        results.append(_compared(net, losses))
    return results


def _compared(net: str, losses: dict[str, list[list[float]]]) -> dict:
    """The differences between the curves, printed too."""
    mine, own, exact = "smallpebble float32", "torch float32", "torch float64"
    again = next(name for name in losses if name.startswith(f"{own},"))
    pairs = [(own, exact), (again, exact), (own, again)]
    pairs += [(mine, own), (mine, again), (mine, exact), ("smallpebble float64", exact)]
    starts, steps = np.shape(losses[own])
    result: dict = {"net": net, "steps": steps, "starts": starts, "losses": losses}
    result["differences"] = {}
    print(f"\n{net}, {steps} training steps from each of {starts} starts: relative difference of")
    print(
        "losses; typical: the median over the starts of the largest, and within or beyond the first"
    )
    print("row's; starts: those at which the largest is at most the first row's")
    print(f"  {'':48}{'largest':>9}{'typical':>9}{'median':>9}{f'first {EARLY}':>10}{'starts':>8}")
    limits = None  # of each start
    for pair in pairs:
        apart = np.abs(np.array(losses[pair[0]]) / np.array(losses[pair[1]]) - 1)
        largest = apart.max(axis=1)
        limits = largest if limits is None else limits
        name = " from ".join(pair)
        result["differences"][name] = found = {
            "largest": largest.max(),
            "largest, median start": np.median(largest),
            "median": np.median(apart),
            f"largest of the first {EARLY}": apart[:, :EARLY].max(),
            "starts within": int(np.sum(largest <= limits)),
        }
        verdict = "  within" if np.median(largest) <= np.median(limits) else "  beyond"
        *others, early, within = found.values()
        print(
            f"  {name:48}{''.join(f'{value:>9.1e}' for value in others)}{early:>10.1e}{within:>8}"
            f"{'' if largest is limits else verdict}"
        )
    return result


if __name__ == "__main__":
    sys.exit(guarded(main))
