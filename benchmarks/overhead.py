"""What is not arithmetic: small operations, how cost grows, and what a second thread brings.

chain
    1000 operations on 4 elements, forward and gradient together, against other libraries: by
    arrays that are constant, and by shared ones whose gradients are wanted, too.
batch, pixels
    A step of convolution, activation and pooling, with its gradient in the kernels, for more and
    more images, and for larger ones. In the ideal, time per image and per pixel stays the same.
threads
    The README CNN's convolutions with one thread and with two.

All take turns, round by round, in processes of their own (see `contest.py`). From the root of a
checkout::

    PYTHONPATH=. python benchmarks/overhead.py --json overhead.json \\
        --peer torch=TORCH/bin/python --peer mygrad=MYGRAD/bin/python
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import contest
import zoo

from smallpebble.cli import DTYPES, CommandError, count, guarded
from smallpebble.cli.bench import number

PEERS = ("torch", "mygrad")
REQUESTS = Path(__file__).with_name("operations.py")
OPERATIONS = 1000
CHAIN_TARGET = 6.0  # microseconds for an operation
BATCHES = tuple(2**i for i in range(11))
SIDES = (32, 48, 64, 96, 128, 192, 256)
SAMPLE = 0.03  # seconds
SPEEDUP_TARGET = 1.8


def main(argv: list[str] | None = None) -> int:
    parser = contest.parser(
        "Time chains of small operations, growing inputs, and one thread against two.", PEERS
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--threads", type=count, default=2, metavar="N", help="of all but `threads` (default: 2)"
    )
    args = parser.parse_args(argv)
    sections: dict[str, Callable] = {
        "chain": _chain,
        "batch": _growing_batch,
        "pixels": _growing_images,
        "threads": _threads,
    }
    wanted = contest.chosen(sections, args.only)
    path, report = contest.begin(args)
    report |= {"dtype": args.dtype, "threads": args.threads}
    for name in wanted:
        report[name] = sections[name](args)
    return contest.finish(path, report)


def _prepared(contenders: contest.Contenders, name: str, case: dict, dtype: str) -> dict:
    answer = contenders.ask(name, {"do": "prepare", "case": case, "dtype": dtype})
    if answer is None:
        raise CommandError(f"{name}: {contenders.failed[name]}", code=1)
    time.sleep(contest.PAUSE)
    return answer["parts"]


def _sampled(contenders: contest.Contenders, name: str, part: str, seconds: float) -> float:
    """Seconds of a call, in a sample of as many calls as take `SAMPLE`."""
    n = max(1, math.ceil(SAMPLE / max(seconds, 1e-9)))
    answer = contenders.sample(name, {"do": "sample", "part": part, "n": n})
    if answer is None:
        raise CommandError(f"{name}: {contenders.failed[name]}", code=1)
    return answer["seconds"] / n


def _alone(args: argparse.Namespace, threads: int) -> contest.Contenders:
    """SmallPebble without peers."""
    return contest.Contenders(
        argparse.Namespace(**{**vars(args), "peer": []}), threads, requests=REQUESTS
    )


# ---- small operations ----


def _chain(args: argparse.Namespace) -> list[dict]:
    results = []
    with contest.Contenders(args, args.threads, REQUESTS) as contenders:
        for shared in (False, True):
            case = {"kind": "chain", "a": (4,), "operations": OPERATIONS, "shared": shared}
            (row,) = zoo.time_case(contenders, case, args.dtype, args.rounds or 31)
            each = {name: 1e6 * s / OPERATIONS for name, s in row["seconds"].items()}
            row |= {"shared": shared, "microseconds_each": each, "target": CHAIN_TARGET}
            results.append(row)
            others = "parameters" if shared else "constants"
            print(
                f"\nA chain of {OPERATIONS} operations (neg, exp, mul, add) on 4 elements with "
                f"{others}:\nmicroseconds for each, forward and gradient"
            )
            for name, value in each.items():
                apart = row["differences"].get(name)
                text = "" if apart is None else f"  result differs by {apart:.1e}"
                print(f"  {name:28}{number(value):>8}{text}")
            ours = each[contenders.ours]
            print(
                f"  at most {CHAIN_TARGET:.0f}: {'reached' if ours <= CHAIN_TARGET else 'missed'}"
            )
            if "ratio" in row:
                verdict = "reached" if row["ratio"] < 1 else "missed"
                print(f"  {row['ratio']:.2f} of {row['fastest']}, round by round: {verdict}")
        contest.say_repeated(contenders.repeated)
    return results


# ---- growth ----


def _growing_batch(args: argparse.Namespace) -> list[dict]:
    sizes = {f"batch {n}": ((n, 32, 32, 16), n) for n in BATCHES}
    return _growing(args, sizes, "image", 1e6)


def _growing_images(args: argparse.Namespace) -> list[dict]:
    sizes = {f"{side}x{side}": ((8, side, side, 16), 8 * side * side) for side in SIDES}
    return _growing(args, sizes, "pixel", 1e9)


def _growing(args: argparse.Namespace, sizes: dict, unit: str, scale: float) -> list[dict]:
    samples: dict[str, list[float]] = {label: [] for label in sizes}
    with _alone(args, args.threads) as contenders:
        order = list(sizes)
        for _ in range(args.rounds or 5):
            for label in order:
                case = {"kind": "step", "images": sizes[label][0], "n_kernels": 32}
                ((part, found),) = _prepared(contenders, contenders.ours, case, args.dtype).items()
                samples[label].append(_sampled(contenders, contenders.ours, part, found["seconds"]))
            order.append(order.pop(0))
        repeated = dict(contenders.repeated)
    rows = []
    for label, (shape, units) in sizes.items():
        seconds = statistics.median(samples[label])
        row = {"case": label, "images": shape, "seconds": seconds, "samples": samples[label]}
        rows.append(row | {f"per_{unit}": seconds / units})
    typical = statistics.median(row[f"per_{unit}"] for row in rows)
    name = {1e6: "us", 1e9: "ns"}[scale]
    print(
        "\n3x3 convolution of 16 channels to 32, leaky relu, 2x2 pooling, gradient in the kernels"
    )
    print(f"  {'':12}{'ms':>9}{f'{name} per {unit}':>15}{'over median':>13}")
    for row in rows:
        each = row[f"per_{unit}"]
        row["over_median"] = each / typical
        print(
            f"  {row['case']:12}{number(1e3 * row['seconds']):>9}{number(scale * each):>15}"
            f"{row['over_median']:>13.2f}"
        )
    contest.say_repeated(repeated)
    return rows


# ---- threads ----


def _threads(args: argparse.Namespace) -> list[dict]:
    rows = []
    print("\nThe CNN's convolutions: milliseconds with one thread and with two")
    with _alone(args, 1) as one, _alone(args, 2) as two:
        for family, label, case in zoo.ZOO:
            if family == "convolution" and label.startswith("CNN"):
                for contenders in (one, two):
                    parts = _prepared(contenders, contenders.ours, case, args.dtype)
                for part, found in parts.items():
                    row = _speedup((one, two), part, found["seconds"], args.rounds or 21)
                    rows.append({"case": label, "part": part, **row})
                    print(
                        f"  {label:38}{part:14}{number(row['one_ms']):>8}"
                        f"{number(row['two_ms']):>8}{row['speedup']:>7.2f}x",
                        flush=True,
                    )
        whole = sum(row["one_ms"] for row in rows) / sum(row["two_ms"] for row in rows)
        verdict = "reached" if whole >= SPEEDUP_TARGET else "missed"
        print(f"  all together: {whole:.2f}x, at least {SPEEDUP_TARGET}: {verdict}")
        contest.say_repeated(one.repeated + two.repeated)
    return rows


def _speedup(both: tuple, part: str, seconds: float, rounds: int) -> dict:
    samples: dict[str, list[float]] = {"one_ms": [], "two_ms": []}
    order = list(zip(samples, both))
    for _ in range(rounds):
        for name, contenders in order:
            taken = _sampled(contenders, contenders.ours, part, seconds)
            samples[name].append(1e3 * taken)
        order.reverse()
    medians = {name: statistics.median(some) for name, some in samples.items()}
    return {**medians, "speedup": medians["one_ms"] / medians["two_ms"], "samples": samples}


if __name__ == "__main__":
    sys.exit(guarded(main))
