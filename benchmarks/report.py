"""BENCHMARKS.md and its picture, from the JSON files of the other scripts of this folder.

Any of them may be given, in any order, and of `zoo.py` and `training.py` several: what a file is
follows from its content. Every figure comes from the files. The picture wants matplotlib. From the
root of a checkout::

    PYTHONPATH=. python benchmarks/report.py training.json curves.json zoo.json overhead.json
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import contest
import overhead
import training
import zoo

from smallpebble.cli import CommandError, files, guarded
from smallpebble.cli.bench import number

KINDS = {  # by what a report of each kind has
    "training": lambda report: "settings" in report,
    "curves": lambda report: "curves" in report,
    "zoo": lambda report: "rows" in report,
    "overhead": lambda report: any(
        isinstance(report.get(key), list) for key in ("chain", "batch", "pixels", "threads")
    ),
}
OURS = "SmallPebble"
# Why a shape of the zoo falls short: the first of these that is in "case, part". A star stands for
# anything.
_CALL = (
    "The arithmetic takes a fraction of a microsecond; what is timed is the call: checks, memory, "
    "a Variable."
)
_LANES = "The channels fill no vector, and every pixel takes one all the same."
# Why a net falls short, by a part of "net dtype threads tier".
NET_REASONS = {
    "avx2": (
        "the products run at the peak of 256-bit multiply-adds, and on a processor that does 512 "
        "bits at once the others have twice that"
    ),
    "readme_mlp*1 ": (
        "most of the time goes into matrix products that run near the processor's peak, where one "
        "thread leaves little to gain; and lists of what is not 0 take a part of what they save"
    ),
    "readme_mlp*2 ": (
        "arrays go from core to core between the layers, which at times takes this kind of shared "
        "machine 0.4 microseconds for a line of memory, else 0.1; a unit then takes a third longer"
    ),
}
REASONS = {
    "matmul 1x1 ": _CALL,
    "matmul 4x4 ": _CALL,
    "matmul 16x16 ": _CALL,
    "add 10 to 200x10, forward": _CALL,
    "add 100 to 200x100, forward": _CALL,
    "leaky_relu 200x100": _CALL,
    "tiny 1x8x8x3": _CALL,
    "matmul 1x784 784x100": "One row: each number of the matrix is used once, by one thread.",
    "matmul 16x4096 4096x4096, forward": "16 rows use each number of b: memory decides.",
    "maxpool2d 16x29x31x13*grad images": _LANES,
    "ResNet shortcut*step 2*grad kernels": (
        "As measured here, each panel of kernels read the images again. Where one product of the "
        "pixels a stride apart is formed instead (`picks_pixels()`), it takes 0.63 of the time."
    ),
    "avgpool2d*3x3 *forward": (
        "Overlapping windows are added up one by one, nine pixels each; sums of rows that "
        "neighbours share are not kept."
    ),
    "x224x3 *grad images": (
        "Three channels, a fraction of a vector: products for whole windows are added to the image "
        "in short runs."
    ),
    "LeNet 128x28x28x1 5x5 to 6 SAME, grad images": (
        "One channel: products for whole windows are added to the image in runs of five numbers."
    ),
    "LeNet 128x28x28x1 5x5 to 6 SAME, forward": "Six kernels fill less than half of a vector.",
    "shortcut*grad images": (
        "Three of four pixels have no gradient, and their zeros are written pixel by pixel."
    ),
    "3x3 to *step 2 SAME, grad images": (
        "Winograd's algorithm does not apply with a stride; pixels see one, two or four cells of "
        "the window, so products are short."
    ),
    "odd 16x29x31x13 3x3 to 17": (
        "13 channels are too few for Winograd's algorithm, and neither 13 nor 17 numbers fill "
        "whole vectors."
    ),
    "odd 16x29x31x17 5x5 to 13 VALID": "13 kernels, and 17 channels, fill no whole vectors.",
}
NO_REASON = "Not known."
TYPICAL = "largest, median start"  # of the loss curves' differences


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write BENCHMARKS.md and its picture from the JSON files of the other scripts.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("json", nargs="+", metavar="JSON", help="what training.py, zoo.py or overhead.py wrote")
    add("--out", metavar="FILE", default="BENCHMARKS.md", help="(default: %(default)s)")
    add(
        "--picture",
        metavar="FILE",
        default="benchmarks/benchmarks.svg",
        help="(default: %(default)s, beside --out)",
    )
    args = parser.parse_args(argv)
    out = files.writable(args.out, "--out")
    beside = out.parent / args.picture
    picture = files.writable(str(beside), "--picture")
    reports = read(args.json)
    drawn = draw(picture, reports)
    link = Path(os.path.relpath(picture, out.parent)).as_posix() if drawn else None
    others = [path.relative_to(out.parent) for path in sorted(out.parent.glob("benchmarks/*.md"))]
    lines = document(reports, link, others)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
    files.write(out, lambda file: file.write(text.encode()))
    print(f"{out}, {picture}" if drawn else out)
    return 0


def read(paths: Iterable[str]) -> dict[str, list[dict]]:
    """The reports of each kind."""
    found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CommandError(f"{path}: cannot be read: {reason}") from None
        known = isinstance(report, dict) and report.get("schema") == contest.SCHEMA
        kinds = [kind for kind, fits in KINDS.items() if known and fits(report)]
        if not kinds:
            raise CommandError(f"{path}: not a report of training.py, zoo.py or overhead.py")
        for kind in kinds:
            found[kind].append(report)
    return found


def document(
    reports: dict[str, list[dict]], picture: str | None, others: Iterable[Path] = ()
) -> Iterator[str]:
    """The lines of BENCHMARKS.md; `others` are documents like it, of other machines."""
    yield "# Benchmarks"
    yield ""
    yield (
        "Written by `benchmarks/report.py` from what the other scripts of `benchmarks/` have "
        "measured. Ratios are SmallPebble's time over that of the fastest other library in the "
        "same run, so below 1 SmallPebble is faster."
    )
    if picture:
        yield f"\n![Training and single operations beside other libraries]({picture})"
    for path in others:
        yield f"\nOn another processor: [{path.stem}]({path.as_posix()})."
    yield from _about([report for some in reports.values() for report in some])
    sections = {
        "training": _training,
        "curves": _curves,
        "zoo": _zoo,
        "overhead": _overhead,
    }
    for kind, section in sections.items():
        for report in reports[kind]:
            yield ""
            yield from section(report)


def table(head: Iterable[str], rows: Iterable[Iterable], left: int = 1) -> Iterator[str]:
    """A table, the first `left` columns of which are text."""
    head = list(head)
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * left}{'---:|' * (len(head) - left)}"
    for row in rows:
        cells = ["-" if one is None else str(one) for one in row]
        yield f"| {' | '.join(cells + ['-'] * (len(head) - len(cells)))} |"
    yield ""


# ---- what was run, and where ----


def _about(reports: list[dict]) -> Iterator[str]:
    yield "\n## Machine and commands"
    machines: dict[tuple, list[dict]] = {}
    for report in reports:
        about = report["machine"]
        key = tuple(about.get(name) for name in ("processor", "processors", "system", "python"))
        machines.setdefault(key, []).append(report)
    for (processor, processors, system, python), some in machines.items():
        yield ""
        yield f"- {processor}, {processors} processors; {system}; Python {python}"
        yield f"- {', '.join(sorted({one for report in some for one in _versions(report)}))}"
        yield ""
        yield "```sh"
        for report in unique(some):
            about = report["machine"]
            load = about.get("load")
            yield f"# {about['date']}" + ("" if load is None else f", load {load:.2f} at the start")
            yield command(about["command"])
        yield "```"


def unique(reports: list[dict]) -> list[dict]:
    """Each report once, the oldest first."""
    found = {id(report): report for report in reports}
    return sorted(found.values(), key=lambda report: report["machine"]["date"])


def _versions(report: dict) -> Iterator[str]:
    """SmallPebble, NumPy, and the other libraries, whose names have their versions."""
    about = report["machine"]
    yield from (f"SmallPebble {about['smallpebble']}", f"NumPy {about['numpy']}")
    groups = [setting.get("contenders", {}) for setting in report.get("settings", ())]
    groups += [report["contenders"]] if "rows" in report else []
    groups += [row["seconds"] for row in report.get("chain", ())]
    yield from (name for group in groups for name in group if name != OURS)


def command(words: list[str]) -> str:
    """A command line as one would type it, without the paths of the machine that it ran on."""
    said, option = ["python", f"benchmarks/{words[0]}"], ""
    for word in words[1:]:
        known, equals, value = word.partition("=")
        if word.startswith("--"):
            option = known
            if equals:
                word = f"{known}={_anonymous(known, value)}"
        else:
            word, option = _anonymous(option, word), ""
        said.append(word)
    return shlex.join(said)


def _anonymous(option: str, value: str) -> str:
    if option == "--peer":
        name = value.partition("=")[0]
        return f"{name}=/path/to/{name}/bin/python"
    if option == "--python":
        return "/path/to/python"
    if option == "--data":
        return "FOLDER"
    return Path(value).name if option == "--json" else value


# ---- training ----


def _training(report: dict) -> Iterator[str]:
    settings = [one for one in report["settings"] if "contenders" in one]
    names = list(dict.fromkeys(name for one in settings for name in one["contenders"]))
    yield "## Training"
    yield ""
    yield (
        "The README's two nets. A unit is a training step and the evaluation of another batch; "
        "milliseconds, medians, everybody in turn. The goals are ratios."
    )
    if any(one.get("pixels") for one in settings):
        yield ""
        yield (
            "Four fifths of the MLP's pixels are 0, as MNIST's images have them, and SmallPebble's "
            f"products leave these out: {training.NO_ZEROS!r} has the same images with 1/255 there."
        )
    yield from table(
        ["net", "dtype", "threads", "kernels", *names, "ratio", "goal", "further goal"],
        [
            [
                _net(one),
                one["dtype"],
                one["threads"],
                one["tier"] or "best",
                *(_unit(one["contenders"].get(name)) for name in names),
                f"**{one['ratio']:.2f}**" if "ratio" in one else None,
                *(f"{goal:.2f}" for goal in one["targets"] or ()),
            ]
            for one in settings
        ],
        left=4,
    )
    for one in report["settings"]:
        if "left_out" in one:
            yield f"{one['name']} was left out: {one['left_out']}.\n"
    for one in settings:
        if one["net"] == "readme_cnn":
            yield f"- {_memory(one)}"
    for one in settings:
        if one["targets"] and one.get("ratio", 0) > one["targets"][0]:
            name = f"{one['net']} {one['dtype']} {one['threads']} {one['tier'] or ''}"
            found = (text for key, text in NET_REASONS.items() if fnmatch.fnmatch(name, f"*{key}*"))
            yield f"- {one['name']} falls short of the goal: {next(found, 'not known why')}."
    yield ""
    yield "<details><summary>Training and evaluation apart, page faults, memory</summary>"
    yield ""
    yield (
        "Page faults are those of a training step, the mean. Peak memory is the most that the "
        "process had in use, and before there was a net. The last columns compare results with "
        f"SmallPebble's: largest relative difference of the first {training.COMPARED} losses, and "
        "the share of images that are taken for the same class."
    )
    yield from table(
        ["net", "contender", "unit ms", "train", "evaluate", "page faults", "peak MB", "before",
         "taken again", "losses", "classes"],
        [_contender(one, name) for one in settings for name in one["contenders"]],
        left=2,
    )  # fmt: skip
    yield f"Taken again: samples with more than {contest.HANDFUL} interruptions by the system."
    yield ""
    yield "</details>"


def _net(setting: dict) -> str:
    pixels = setting.get("pixels")
    return setting["net"].removeprefix("readme_").upper() + (f" {pixels}" if pixels else "")


def _unit(mine: dict | None) -> str | None:
    if mine is None:
        return None
    return "failed" if "failed" in mine else number(mine["unit_ms"])


def _contender(setting: dict, name: str) -> list:
    mine = setting["contenders"][name]
    head = [setting["name"].removeprefix("readme_"), name]
    if "failed" in mine:
        return [*head, "failed"]
    peak, before = (
        None if memory["peak"] is None else f"{memory['peak'] / 1e6:.0f}"
        for memory in (mine["memory"], mine["memory_before"])
    )
    return [
        *head,
        *(number(mine[key]) for key in ("unit_ms", "train_ms", "evaluate_ms")),
        f"{mine['train_faults']:.0f}",
        peak,
        before,
        mine["repeated"],
        f"{mine['loss_difference']:.1e}",
        f"{mine['classes_alike']:.1%}",
    ]


def _memory(setting: dict) -> str:
    """Page faults and memory of a CNN's training, beside what they may be."""
    ours = setting["contenders"][OURS]
    text = (
        f"{setting['name'].removeprefix('readme_')}: {ours['train_faults']:.0f} page faults in a "
        f"training step (goal: fewer than {training.FAULTS})"
    )
    for name, mine in setting["contenders"].items():
        if name.startswith("torch") and "failed" not in mine and mine["memory"]["peak"]:
            share = ours["memory"]["peak"] / mine["memory"]["peak"]
            text += f"; peak memory {share:.2f} of PyTorch's (goal: at most 1)"
    return text


# ---- loss curves ----


def _curves(report: dict) -> Iterator[str]:
    yield "## Loss curves"
    yield ""
    yield (
        "Losses of training from the same starts, SmallPebble's and PyTorch's: relative "
        "differences of each step. The goal is that SmallPebble's curves differ from PyTorch's by "
        "no more than PyTorch's own in float32 and float64 differ, which is the first row of each "
        "net. Training magnifies a rounding error, from some starts ten times as much as from "
        "others, so that the largest of all starts is the luck of one: the goal is looked at by "
        "the largest difference at the median start, and by the largest of all. Between two curves "
        "in float32 the roundings of both count: without any in SmallPebble, they would differ by "
        "the first row. PyTorch with another number of threads, which sums in another order, shows "
        "how far it differs from itself. `starts within` counts the starts whose largest "
        "difference is at most the first row's from the same start."
    )
    for curve in report["curves"]:
        differences = curve["differences"]
        own = next(iter(differences.values()))
        yield from table(
            [
                f"{curve['net'].removeprefix('readme_').upper()}, {curve['steps']} steps from each "
                f"of {curve['starts']} starts",
                *own,
                "goal, median start",
                "goal, largest",
            ],
            [
                [
                    name,
                    *(f"{x:.1e}" if isinstance(x, float) else x for x in found.values()),
                    *(_verdict(name, found[by], own[by]) for by in (TYPICAL, "largest")),
                ]
                for name, found in differences.items()
            ],
        )


def _verdict(name: str, difference: float, limit: float) -> str | None:
    if not name.startswith("smallpebble"):
        return None
    return "reached" if difference <= limit else "missed"


# ---- single operations ----


def _zoo(report: dict) -> Iterator[str]:
    rows = [row for row in report["rows"] if "ratio" in row]
    yield f"## Single operations, {report['dtype']}, {_threads_of(report)}"
    yield ""
    yield (
        f"{len({row['case'] for row in report['rows']})} shapes, forward and each gradient by "
        "itself, microseconds, medians. The ratio is the median, over all rounds, of SmallPebble's "
        "time to that of the fastest peer in the same round."
    )
    if not rows:
        yield "\nNo ratios: there was no library to compare with."
        return
    yield from table(
        ["", "geometric mean", "operations", "slower than 1", f"above {zoo.LIMIT}", "goal"],
        [_family(title, some, goal) for title, some, goal in _families(rows)],
    )
    for name, reason in report.get("failed", {}).items():
        yield f"{name} failed: {reason}\n"
    apart = [row for row in rows if zoo._remarks(row, report["dtype"])]
    tolerance = f"{zoo.TOLERANCE[report['dtype']]:.0e}"
    yield f"Results that differ by more than {tolerance}, relatively: {len(apart) or 'none'}."
    yield from (f"- {name_of(row)}" for row in apart)
    visited = sum("visits" in row for row in rows)
    yield (
        f"Measured {zoo.VISITS} times, with arrays made anew, for a ratio above {zoo.CLOSE} at "
        f"first: {visited}; medians go over all rounds."
    )
    again = ", ".join(f"{name} {n}" for name, n in report.get("repeated", {}).items())
    yield f"Samples taken again, for interruptions by the system: {again or 'none'}."
    yield ""
    yield "### Where it falls short"
    yield ""
    slow = sorted((row for row in rows if row["ratio"] > zoo.LIMIT), key=lambda row: -row["ratio"])
    by_medians = sum(
        row["seconds"][OURS] > zoo.LIMIT * row["seconds"][row["fastest"]] for row in rows
    )
    yield (
        f"Above {zoo.LIMIT} of the fastest: {len(slow)} of {len(rows)}; by the medians, without "
        f"regard to rounds, {by_medians}."
    )
    if slow:
        yield from table(
            ["operation", "reason", "ratio", "us", "fastest us", "fastest"],
            [[name_of(row), why(row), *_figures(row)] for row in slow],
            left=2,
        )
    yield ""
    yield f"<details><summary>All {len(rows)}</summary>"
    yield from table(
        ["operation", "ratio", "us", "fastest us", "fastest"],
        [[name_of(row), *_figures(row)] for row in rows],
    )
    yield "</details>"


def name_of(row: dict) -> str:
    return f"{row['case']}, {row['part']}"


def why(row: dict) -> str:
    """Why a row falls short, as far as that is known."""
    name = name_of(row)
    found = (text for key, text in REASONS.items() if fnmatch.fnmatchcase(name, f"*{key}*"))
    return next(found, NO_REASON)


def _figures(row: dict) -> tuple:
    ours, peer = (1e6 * row["seconds"][name] for name in (OURS, row["fastest"]))
    return f"{row['ratio']:.2f}", number(ours), number(peer), row["fastest"].split()[0]


def _families(rows: list[dict]) -> Iterator[tuple[str, list[dict], float | None]]:
    for family in dict.fromkeys(row["family"] for row in rows):
        yield family, [row for row in rows if row["family"] == family], None
    for windows, goal in zoo.TARGETS.items():
        some = [row for row in rows if (row["family"] in zoo.WINDOWS) is windows]
        title = "convolution and pooling" if windows else "all others"
        if some:
            yield f"**{title}**", some, goal


def _family(title: str, rows: list[dict], goal: float | None) -> list:
    ratios = [row["ratio"] for row in rows]
    slower, slow = (sum(ratio > limit for ratio in ratios) for limit in (1, zoo.LIMIT))
    return [title, f"{contest.geometric_mean(ratios):.2f}", len(ratios), slower, slow, goal]


# ---- overhead, growth, threads ----


def _overhead(report: dict) -> Iterator[str]:
    if "chain" in report:
        yield "## Small operations"
        yield ""
        yield (
            f"A chain of {overhead.OPERATIONS} operations (neg, exp, mul, add) on 4 elements: "
            f"microseconds for each, forward and gradient. The goal is at most "
            f"{overhead.CHAIN_TARGET:g}, and less than the others take. The ratio is to the "
            "fastest, the median of rounds."
        )
        names = list(report["chain"][0]["microseconds_each"])
        yield from table(
            ["beside the chain", *names, "ratio"],
            [
                [
                    "parameters, whose gradients are wanted too" if row["shared"] else "constants",
                    *(number(row["microseconds_each"].get(name)) for name in names),
                    f"**{row['ratio']:.2f}**" if "ratio" in row else None,
                ]
                for row in report["chain"]
            ],
        )
    grown = [("batch", "image", 1e6, "us"), ("pixels", "pixel", 1e9, "ns")]
    if any(key in report for key, *_ in grown):
        yield f"## Growth, {report['dtype']}, {_threads_of(report)}"
        yield ""
        yield (
            "A 3x3 convolution of 16 channels to 32, leaky relu, 2x2 pooling, and the gradient in "
            "the kernels. In the ideal, time for each image and each pixel stays the same."
        )
    for key, unit, scale, name in grown:
        if key in report:
            yield from table(
                ["", "ms", f"{name} per {unit}", "over the median"],
                [
                    [
                        row["case"],
                        number(1e3 * row["seconds"]),
                        number(scale * row[f"per_{unit}"]),
                        f"{row['over_median']:.2f}",
                    ]
                    for row in report[key]
                ],
            )
    if isinstance(report.get("threads"), list):
        rows = report["threads"]
        one, two = (sum(row[key] for row in rows) for key in ("one_ms", "two_ms"))
        speedups = [row["speedup"] for row in rows]
        yield f"## Two threads, {report['dtype']}"
        yield ""
        yield (
            f"The CNN's convolutions with one thread and with two. All together: {one / two:.2f} "
            f"times as fast (goal: at least {overhead.SPEEDUP_TARGET}); median "
            f"{statistics.median(speedups):.2f}."
        )
        yield from table(
            ["", "one, ms", "two, ms", "times as fast"],
            [
                [
                    name_of(row),
                    number(row["one_ms"]),
                    number(row["two_ms"]),
                    f"{row['speedup']:.2f}",
                ]
                for row in rows
            ],
        )


def _threads_of(report: dict) -> str:
    """How many, in words; overhead.py may have written what it measured in that place."""
    n = report["threads"]
    if not isinstance(n, int):
        words = report["machine"]["command"]
        n = int(words[words.index("--threads") + 1]) if "--threads" in words else 2
    return f"{n} thread{'s' if n > 1 else ''}"


# ---- the picture ----


def draw(path: Path, reports: dict[str, list[dict]]) -> bool:
    """Bars of the training units, and the sorted ratios of the zoo; False if there is neither."""
    settings = [one for r in reports["training"] for one in r["settings"] if "contenders" in one]
    rows = [row for r in reports["zoo"] for row in r["rows"] if "ratio" in row]
    if not settings and not rows:
        return False
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError(
            f'the picture needs matplotlib: pip install "smallpebble[plot]" ({error})'
        ) from None
    # Text stays text, and the same figures make the same file.
    style = {"svg.fonttype": "none", "svg.hashsalt": "smallpebble", "font.size": 9}
    with matplotlib.rc_context(style):
        panels = [one for one in ((_draw_training, settings), (_draw_zoo, rows)) if one[1]]
        figure = Figure(figsize=(5.5 * len(panels), 5), layout="constrained", facecolor="white")
        for axes, (panel, some) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            panel(axes, some)
            axes.grid(alpha=0.3, which="both", linewidth=0.5)
            axes.set_axisbelow(True)
        ending = path.suffix.lstrip(".") or "svg"
        metadata = {"Date": None} if ending == "svg" else None
        files.write(path, lambda f: figure.savefig(f, format=ending, metadata=metadata, dpi=110))
    return True


def _draw_training(axes, settings: list[dict]) -> None:
    names = dict.fromkeys(name for one in settings for name in one["contenders"])
    others = [name for name in names if name != OURS]
    height = 0.8 / max(1, len(others))
    for i, name in enumerate(others):
        bars = {}
        for place, one in enumerate(settings):
            mine = one["contenders"].get(name, {"failed": ""})
            if "failed" not in mine:
                ratio = mine["unit_ms"] / one["contenders"][OURS]["unit_ms"]
                bars[place + (i - (len(others) - 1) / 2) * height] = ratio - 1
        axes.barh(list(bars), list(bars.values()), height, left=1, label=name, color=f"C{i}")
    labels = [one["name"].removeprefix("readme_").replace("mlp", "MLP").replace("cnn", "CNN")
              for one in settings]  # fmt: skip
    axes.set_yticks(range(len(settings)), labels)
    axes.invert_yaxis()
    _log_axis(axes, "x")
    axes.axvline(1, color="black", linewidth=1.5, label=OURS)
    axes.set_xlabel("time over SmallPebble's")
    axes.set_title("A training step and an evaluation")
    axes.legend(fontsize=8)


def _draw_zoo(axes, rows: list[dict]) -> None:
    rows = sorted(rows, key=lambda row: row["ratio"])
    for label, windows in (("convolution and pooling", True), ("all others", False)):
        of = [i for i, row in enumerate(rows) if (row["family"] in zoo.WINDOWS) is windows]
        axes.plot(of, [rows[i]["ratio"] for i in of], ".", markersize=4, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axhline(zoo.LIMIT, color="tab:red", linewidth=0.8, label=f"{zoo.LIMIT}")
    _log_axis(axes, "y")
    axes.set_xlabel("single operations, sorted")
    axes.set_ylabel("SmallPebble's time over the fastest peer's")
    axes.set_title("Single operations")
    axes.legend(fontsize=8)


def _log_axis(axes, which: str) -> None:
    """A logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


if __name__ == "__main__":
    sys.exit(guarded(main))
