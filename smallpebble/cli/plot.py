"""Pictures of what a command measured, drawn by matplotlib if it is installed and asked for.

Only matplotlib's objects are used, no pyplot: no window, no state, no display needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import CommandError, files


def check(path: str | None, option: str = "--plot") -> Path | None:
    """The absolute path of a picture to be drawn; a CommandError if that cannot work.

    None, for an option that was not given, stays None and imports nothing.
    """
    target = files.writable(path, option)
    if target is None:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError(
            f'{option} needs matplotlib: pip install "smallpebble[plot]" ({error})'
        ) from None
    endings = FigureCanvasAgg(Figure()).get_supported_filetypes()
    if _ending(target) not in endings:
        raise CommandError(
            f"{option}: no picture of the kind {target.suffix!r}: choose one of "
            + ", ".join("." + ending for ending in sorted(endings))
        )
    return target


def training(
    path: Path,
    title: str,
    losses: Sequence[float],
    accuracies: Sequence[tuple[int, float]],
) -> None:
    """Draw the loss of every step, and the accuracies as (step, accuracy), side by side."""
    figure = _figure(11, 4)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    steps = range(1, len(losses) + 1)
    left.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="each step")
    left.plot(steps, _smooth(losses), color="tab:blue", label="running mean")
    if min(losses) > 0:
        left.set_yscale("log")
    left.set(xlabel="step", ylabel="loss (mean cross-entropy)")
    left.legend()
    left.grid(alpha=0.3)
    if accuracies:
        right.plot(*zip(*accuracies), color="tab:green", marker=".")
        right.annotate(
            f"{accuracies[-1][1]:.4f}",
            accuracies[-1],
            xytext=(-4, -14),
            textcoords="offset points",
            horizontalalignment="right",
        )
    right.set(xlabel="step", ylabel="validation accuracy", ylim=(0, 1.02))
    right.grid(alpha=0.3)
    _save(figure, path)


def speedups(path: Path, title: str, rows: Sequence[tuple[str, float]]) -> None:
    """Draw the speed-ups of (label, speed-up) as bars on a logarithmic scale."""
    figure = _figure(9, 1.5 + 0.22 * len(rows))
    figure.suptitle(title)
    axes = figure.subplots()
    labels, values = zip(*rows)
    places = range(len(rows))
    colors = ["tab:green" if value >= 1 else "tab:red" for value in values]
    # From 1 on, to the right or to the left: 0 has no place on a logarithmic scale.
    bars = axes.barh(places, [value - 1 for value in values], left=1, color=colors)
    axes.bar_label(bars, [f"{value:.3g}x" for value in values], padding=3, fontsize=7)
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(min(0.5, *values) / 1.5, max(2.0, *values) * 2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times faster than the NumPy reference")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    files.write(path, lambda file: figure.savefig(file, format=_ending(path), dpi=120))


def _ending(path: Path) -> str:
    return path.suffix.lower()[1:] or "png"


def _smooth(values: Sequence[float]) -> list[float]:
    """Running mean with weights that fade over a fiftieth of the values; free of a start bias."""
    keep = math.exp(-1 / max(1, len(values) / 50))
    total = weight = 0.0
    smooth = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return smooth
