"""Single operations of many shapes against other libraries: forward, and each gradient by itself.

Convolutions of known nets and of odd sizes, poolings, sums, matrix products, activations, losses
and steps of Adam. `operations.py` says what exactly is timed. Contenders (see `contest.py`) work on
the same numbers, and what they find is compared. A sample is as many calls as take some 15 ms.
Times are medians over all rounds of a sample's time by its calls. The ratio is to the peer that is
fastest by these: the median, over all rounds, of SmallPebble's sample to the peer's of the same
round, so that a machine that is slow for seconds is slow for both. Where arrays lie in memory
decides some figures: at the end, operations whose ratio is above `CLOSE` have as many rounds again,
six times, with arrays made anew, and all that there is counts. From the root of a checkout::

    PYTHONPATH=. python benchmarks/zoo.py --json zoo.json \\
        --peer torch=TORCH/bin/python --peer jax=JAX/bin/python --peer tensorflow=TF/bin/python
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Collection
from pathlib import Path

import contest

from smallpebble.cli import DTYPES, CommandError, count, guarded
from smallpebble.cli.bench import number

PEERS = ("torch", "jax", "tensorflow")
SAMPLE = 0.015  # seconds
WINDOWS = ("convolution", "pooling")
TARGETS = {True: 0.8, False: 1.0}  # geometric mean of windows, and of the rest
LIMIT = 1.3  # of any single ratio
CLOSE = 1.1  # a ratio that is measured again, ...
VISITS = 7  # ... so often altogether
TOLERANCE = {"float32": 1e-4, "float64": 1e-11}  # relative difference of results


def convolution(name, images, window, n_kernels, strides=(1, 1), padding="SAME"):
    """A case: images (n, h, w, c), a window of (kh, kw)."""
    case = {"kind": "conv2d", "images": images, "window": window, "n_kernels": n_kernels}
    label = f"{name} {_by(images)} {_by(window)} to {n_kernels}"
    return _windows("convolution", label, case, strides, padding)


def pooling(kind, images, window, strides, padding="SAME"):
    """A case: images (n, h, w, c), a window of (kh, kw)."""
    return _windows(
        "pooling",
        f"{kind} {_by(images)} {_by(window)}",
        {"kind": kind, "images": images, "window": window},
        strides,
        padding,
    )


def _windows(family, label, case, strides, padding):
    step = f" step {strides[0]}" if strides != (1, 1) else ""
    return family, f"{label}{step} {padding}", case | {"strides": strides, "padding": padding}


def other(family, label, kind, **sizes):
    """A case that is no window over images."""
    return family, label, {"kind": kind, **sizes}


def sums(shape, to):
    """A sum down to a shape; its gradient is the broadcasting back."""
    return other("sums", f"sum_to {_by(shape)} to {_by(to)}", "sum_to", a=shape, to=to)


def bias(shape, of):
    """A broadcast addition; the gradient in what is added is a sum."""
    return other("sums", f"add {_by(of)} to {_by(shape)}", "add", a=shape, b=of)


def product(a, b):
    """A matrix product."""
    return other("matmul", f"matmul {_by(a)} {_by(b)}", "matmul", a=a, b=b)


def rows(kind, shape):
    """Something that is done along rows, or to each element."""
    return other(kind, f"{kind} {_by(shape)}", kind, a=shape)


def _by(shape):
    return "x".join(map(str, shape)) or "scalar"


CNN = ((128, 30, 30, 32), (128, 13, 13, 128), (128, 5, 5, 128))  # outputs of its convolutions
ZOO = [
    convolution("CNN 1", (128, 32, 32, 3), (3, 3), 32, padding="VALID"),
    convolution("CNN 2", (128, 15, 15, 32), (3, 3), 128, padding="VALID"),
    convolution("CNN 3", (128, 7, 7, 128), (3, 3), 128, padding="VALID"),
    convolution("ResNet stem", (8, 224, 224, 3), (7, 7), 64, (2, 2)),
    convolution("ResNet stem", (1, 224, 224, 3), (7, 7), 64, (2, 2)),
    convolution("ResNet", (8, 56, 56, 64), (3, 3), 64),
    convolution("ResNet", (8, 28, 28, 128), (3, 3), 128),
    convolution("ResNet", (8, 14, 14, 256), (3, 3), 256),
    convolution("ResNet", (8, 7, 7, 512), (3, 3), 512),
    convolution("ResNet", (1, 56, 56, 64), (3, 3), 64),
    convolution("ResNet", (1, 14, 14, 256), (3, 3), 256),
    convolution("ResNet", (32, 14, 14, 256), (3, 3), 256),
    convolution("ResNet", (8, 56, 56, 64), (3, 3), 128, (2, 2)),
    convolution("ResNet", (8, 14, 14, 256), (3, 3), 512, (2, 2)),
    convolution("ResNet shortcut", (8, 56, 56, 64), (1, 1), 128, (2, 2)),
    convolution("ResNet-50", (8, 56, 56, 64), (1, 1), 256),
    convolution("ResNet-50", (8, 28, 28, 512), (1, 1), 128),
    convolution("ResNet-50", (8, 7, 7, 2048), (1, 1), 512),
    convolution("VGG", (2, 224, 224, 3), (3, 3), 64),
    convolution("VGG", (2, 112, 112, 64), (3, 3), 128),
    convolution("VGG", (4, 28, 28, 256), (3, 3), 512),
    convolution("MobileNet", (16, 28, 28, 128), (1, 1), 256),
    convolution("MobileNet", (16, 7, 7, 512), (1, 1), 1024),
    convolution("MobileNet", (1, 112, 112, 32), (1, 1), 64),
    convolution("LeNet", (128, 28, 28, 1), (5, 5), 6),
    convolution("LeNet", (128, 14, 14, 6), (5, 5), 16, padding="VALID"),
    convolution("AlexNet", (16, 224, 224, 3), (11, 11), 64, (4, 4)),
    convolution("AlexNet", (16, 27, 27, 64), (5, 5), 192),
    convolution("AlexNet", (16, 13, 13, 192), (3, 3), 384),
    convolution("5x5", (64, 16, 16, 32), (5, 5), 64),
    convolution("one channel", (64, 28, 28, 1), (3, 3), 32),
    convolution("one kernel", (16, 32, 32, 32), (3, 3), 1),
    convolution("odd", (16, 29, 31, 13), (3, 3), 17),
    convolution("odd", (16, 29, 31, 17), (5, 5), 13, padding="VALID"),
    convolution("odd", (16, 29, 31, 13), (1, 1), 17),
    convolution("oblong", (16, 30, 30, 24), (1, 7), 24),
    convolution("digits", (64, 8, 8, 1), (3, 3), 32),
    convolution("digits", (64, 4, 4, 32), (3, 3), 64),
    convolution("tiny", (1, 8, 8, 3), (3, 3), 8),
    *(pooling("maxpool2d", shape, (2, 2), (2, 2)) for shape in CNN),
    pooling("maxpool2d", (8, 112, 112, 64), (3, 3), (2, 2)),
    pooling("maxpool2d", (16, 28, 28, 64), (3, 3), (1, 1)),
    pooling("maxpool2d", (64, 24, 24, 6), (2, 2), (2, 2)),
    pooling("maxpool2d", (16, 29, 31, 13), (3, 3), (2, 2)),
    pooling("maxpool2d", (1, 56, 56, 64), (2, 2), (2, 2)),
    pooling("avgpool2d", CNN[0], (2, 2), (2, 2)),
    pooling("avgpool2d", (8, 56, 56, 64), (3, 3), (2, 2)),
    pooling("avgpool2d", (16, 28, 28, 64), (3, 3), (1, 1)),
    pooling("avgpool2d", (32, 7, 7, 512), (7, 7), (1, 1), "VALID"),
    sums((64, 30, 32, 48), (1, 30, 32, 48)),
    sums((64, 30, 32, 48), (64, 1, 32, 48)),
    sums((64, 30, 32, 48), (64, 30, 1, 48)),
    sums((64, 30, 32, 48), (64, 30, 32, 1)),
    sums((128, 30, 30, 32), (32,)),
    sums((128, 30, 30, 32), (128, 1, 1, 32)),
    sums((200, 100), (100,)),
    sums((200, 100), (200, 1)),
    sums((4096, 1000), (1000,)),
    sums((4096, 1000), (4096, 1)),
    sums((1000, 1000), ()),
    sums((17, 13, 11), (13, 1)),
    bias((128, 30, 30, 32), (32,)),
    bias((200, 100), (100,)),
    bias((200, 10), (10,)),
    bias((64, 30, 32, 48), (30, 1, 1)),
    *(product((n, n), (n, n)) for n in (1, 4, 16, 64, 128, 256, 512, 1024, 2048)),
    product((200, 784), (784, 100)),
    product((200, 100), (100, 100)),
    product((200, 100), (100, 10)),
    product((128, 1152), (1152, 10)),
    product((1, 784), (784, 100)),
    product((100_000, 16), (16, 16)),
    product((16, 4096), (4096, 4096)),
    product((64, 20_000), (20_000, 64)),
    product((333, 77), (77, 555)),
    product((64, 64, 64), (64, 64, 64)),
    product((1000, 8, 8), (1000, 8, 8)),
    product((32, 50, 64), (64, 128)),
    *(
        rows(kind, shape)
        for kind in ("softmax", "log_softmax", "cross_entropy")
        for shape in ((200, 10), (128, 1000), (4096, 256))
    ),
    *(rows("leaky_relu", shape) for shape in ((200, 100), CNN[1], CNN[0])),
    *(
        other("adam", f"adam {name}", "adam", shapes=shapes)
        for name, shapes in {
            "MNIST net": ((784, 100), (100,), (100, 100), (100,), (100, 10), (10,)),
            "CIFAR CNN": ((3, 3, 3, 32), (3, 3, 32, 128), (3, 3, 128, 128), (1152, 10), (10,)),
            "1000x4096": ((1000, 4096),),
            "100 of 64": ((64,),) * 100,
        }.items()
    ),
]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = contest.parser(
        "Time single operations, forward and gradients, side by side with other libraries.", PEERS
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=count, default=2, metavar="N", help="(default: 2)")
    args = parser.parse_args(argv)
    known = {label: (family, case) for family, label, case in ZOO}
    wanted = contest.chosen(known, args.only)
    path, report = contest.begin(args)
    requests = Path(__file__).with_name("operations.py")
    with contest.Contenders(args, args.threads, requests) as contenders:
        report |= {"dtype": args.dtype, "threads": args.threads, "contenders": contenders.about()}
        print(f"\n{args.dtype}, threads: {args.threads}; microseconds, medians")
        print(
            f"{'':60}{'':13}{'ours us':>10}{'fastest':>10}{'ratio':>8}{'differ':>9}  fastest peer"
        )
        rows = []
        for label in wanted:
            family, case = known[label]
            for row in time_case(contenders, case, args.dtype, args.rounds or 7):
                row |= {"family": family, "case": label}
                rows.append(row)
                print(_line(row, args.dtype), flush=True)
        _visit_again(contenders, rows, args.dtype, args.rounds or 7)
        report["rows"], report["repeated"] = rows, dict(contenders.repeated)
        report["failed"] = contenders.failed
        contest.say_repeated(contenders.repeated)
        for name, reason in contenders.failed.items():
            print(f"{name} failed: {reason}")
    _summary(rows, args.dtype)
    return contest.finish(path, report)


def _visit_again(contenders: contest.Contenders, rows: list[dict], dtype: str, rounds: int) -> None:
    """More samples, of other arrays, for the rows that are close to the limit or beyond."""
    close = [row for row in rows if row.get("ratio", 0) > CLOSE]
    if close:
        print(f"\nAgain, for a ratio above {CLOSE}: {len(close)}; medians of all rounds")
    cases = {label: case for _, label, case in ZOO}
    for visit in range(1, VISITS):
        for label in dict.fromkeys(row["case"] for row in close):
            own = {row["part"]: row for row in close if row["case"] == label}
            for more in time_case(contenders, cases[label], dtype, rounds, set(own)):
                _add_samples(own[more["part"]], more, contenders)
                if visit == VISITS - 1:
                    print(_line(own[more["part"]], dtype), flush=True)


def _add_samples(row: dict, more: dict, contenders: contest.Contenders) -> None:
    row["visits"] = row.get("visits", 1) + 1
    for name, some in more["samples"].items():
        row["samples"].setdefault(name, []).extend(some)
    for name, apart in more["differences"].items():
        row["differences"][name] = max(apart, row["differences"].get(name, 0))
    _compare(row, contenders)


def _compare(row: dict, contenders: contest.Contenders) -> None:
    """Medians of the samples, and of SmallPebble's over the fastest peer's, round by round."""
    samples = row["samples"]
    row["seconds"] = {name: statistics.median(some) for name, some in samples.items() if some}
    rivals = {name: row["seconds"][name] for name in contenders.rivals() if samples.get(name)}
    if rivals:
        row["fastest"] = min(rivals, key=lambda name: rivals[name])
        pairs = zip(samples[contenders.ours], samples[row["fastest"]], strict=False)
        row["ratio"] = statistics.median(ours / peer for ours, peer in pairs)


def time_case(
    contenders: contest.Contenders,
    case: dict,
    dtype: str,
    rounds: int,
    only: Collection[str] | None = None,
) -> list[dict]:
    """Seconds of everybody for the parts of a case, and how far results are from SmallPebble's.

    All parts, or those in `only`.
    """
    ours = contenders.ours
    prepared = {}
    for name in contenders.names():
        answer = contenders.ask(name, {"do": "prepare", "case": case, "dtype": dtype})
        if answer is not None:
            prepared[name] = answer["parts"]
    if ours not in prepared:
        raise CommandError(f"SmallPebble: {contenders.failed[ours]}", code=1)
    found = []
    for part in prepared[ours]:
        if only is not None and part not in only:
            continue
        calls = {
            name: max(1, math.ceil(SAMPLE / max(parts[part]["seconds"], 1e-9)))
            for name, parts in prepared.items()
        }
        samples: dict[str, list[float]] = {name: [] for name in prepared}
        for name in contenders.turns(rounds):
            request = {"do": "sample", "part": part, "n": calls[name]}
            answer = contenders.sample(name, request)
            if answer is not None:
                samples[name].append(answer["seconds"] / calls[name])
        row = {
            "part": part,
            "calls": calls,
            "samples": samples,
            "how": {name: parts[part]["how"] for name, parts in prepared.items()},
            "differences": {
                name: difference(parts[part], prepared[ours][part])
                for name, parts in prepared.items()
                if name != ours
            },
        }
        _compare(row, contenders)
        found.append(row)
    return found


def difference(one: dict, other: dict) -> float:
    """How far two results are apart, relative to their size; infinite for different shapes."""
    if math.prod(one["shape"]) != math.prod(other["shape"]):
        return math.inf
    norm = max(other["norm"], one["norm"], 1e-300)
    largest = max(other["largest"], one["largest"], 1e-300)
    return max(
        abs(one["sum"] - other["sum"]) / norm,
        abs(one["norm"] - other["norm"]) / norm,
        abs(one["largest"] - other["largest"]) / largest,
    )


def _line(row: dict, dtype: str) -> str:
    ours = 1e6 * next(iter(row["seconds"].values()))
    text = f"{row['case']:60}{row['part']:13}{number(ours):>10}"
    if "ratio" not in row:
        return text
    fastest = row["fastest"]
    worst = max(row["differences"].values())
    text += f"{number(1e6 * row['seconds'][fastest]):>10}{row['ratio']:>8.2f}{worst:>9.1e}"
    return f"{text}  {fastest}{_remarks(row, dtype)}"


def _remarks(row: dict, dtype: str) -> str:
    apart = [name for name, d in row["differences"].items() if not d <= TOLERANCE[dtype]]
    return f"  DIFFERENT RESULT: {', '.join(apart)}" if apart else ""


def _summary(rows: list[dict], dtype: str) -> None:
    compared = [row for row in rows if "ratio" in row]
    if not compared:
        print("\nNo ratios: there is no peer to compare with.")
        return
    print("\nGeometric mean of SmallPebble's time over the fastest peer's")
    families = list(dict.fromkeys(row["family"] for row in compared))
    for family in families:
        ratios = [row["ratio"] for row in compared if row["family"] == family]
        print(f"  {family:28}{contest.geometric_mean(ratios):>6.2f}  of {len(ratios)}")
    for windows, target in TARGETS.items():
        ratios = [row["ratio"] for row in compared if (row["family"] in WINDOWS) is windows]
        if ratios:
            mean = contest.geometric_mean(ratios)
            title = "convolution and pooling" if windows else "all others"
            verdict = "reached" if mean <= target else "missed"
            print(f"  {title:28}{mean:>6.2f}  at most {target}: {verdict}")
    slow = sorted((row for row in compared if row["ratio"] > LIMIT), key=lambda row: -row["ratio"])
    print(f"\nAbove {LIMIT}: {len(slow)} of {len(compared)}")
    for row in slow:
        print(f"  {row['ratio']:6.2f}  {row['case']}, {row['part']}  ({row['fastest']})")
    apart = [row for row in compared if _remarks(row, dtype)]
    print(f"\nDifferent results, beyond {TOLERANCE[dtype]:.0e}: {len(apart)}")
    for row in apart:
        print(f"  {row['case']}, {row['part']}: {row['differences']}")


if __name__ == "__main__":
    sys.exit(guarded(main))
