"""How far a command has come: one redrawn line on a terminal, a line now and then in a log.

On a terminal tqdm draws the line where it is installed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import IO, Any

_REDRAW = 0.1  # seconds between two drawings on a terminal
_LOG_SOON, _LOG_LATE = 1.0, 10.0  # seconds between two lines of a log


def open_progress(total: int, unit: str, stream: IO[str] | None = None) -> Progress:
    """Progress of `total` units of work on `stream` (default stderr), in the form that suits it.

    >>> with open_progress(300, "step") as progress:
    ...     progress.update(1, "loss 2.3012")
    """
    stream = sys.stderr if stream is None else stream
    if stream is None:  # as under pythonw
        return Progress(total, unit)
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return _Log(total, unit, stream)
    try:
        from tqdm import tqdm
    except ImportError:
        return _Line(total, unit, stream)
    return _Tqdm(total, unit, stream, tqdm)


class Progress:
    """Counts and measures, and shows nothing; the base of the forms that do."""

    def __init__(self, total: int, unit: str, stream: Any = None) -> None:
        self.total, self.unit, self.stream = total, unit, stream
        self.done, self.text = 0, ""
        self.started = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        """Say that `done` units are complete, and what is known so far."""
        self.done, self.text = done, text
        self._show()

    def print(self, text: str) -> None:
        """Print a result to stdout, clear of the line that shows the progress."""
        self._clear()
        print(text, flush=True)

    def close(self) -> None:
        """Show the last state and leave the line."""

    def _show(self) -> None:
        pass

    def _clear(self) -> None:
        pass

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        # Whoever watched may have gone; what was done is not lost for that.
        with contextlib.suppress(OSError):
            self.close()

    def _summary(self) -> str:
        width = len(str(self.total))
        parts = [f"{self.unit} {self.done:{width}}/{self.total}"]
        if self.text:
            parts.append(self.text)
        seconds = time.monotonic() - self.started
        if self.done and seconds > 0:
            rate = self.done / seconds
            fine = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
            parts.append(f"{fine} {self.unit}s/s")
            parts.append(f"ETA {_clock((self.total - self.done) / rate)}")
        return "  ".join(parts)


class _Line(Progress):
    def __init__(self, total: int, unit: str, stream: IO[str]) -> None:
        super().__init__(total, unit, stream)
        self.shown_at, self.length = 0.0, 0

    def _show(self) -> None:
        now = time.monotonic()
        if now - self.shown_at >= _REDRAW:
            self.shown_at = now
            self._draw()

    def _draw(self) -> None:
        # A line that wraps could not be redrawn.
        line = self._summary()[: _columns(self.stream, 80) - 1]
        self.stream.write("\r" + line + " " * (self.length - len(line)))
        self.stream.flush()
        self.length = len(line)

    def _clear(self) -> None:
        self.stream.write("\r" + " " * self.length + "\r")
        self.stream.flush()
        self.length, self.shown_at = 0, 0.0

    def close(self) -> None:
        self._draw()
        self.stream.write("\n")
        self.stream.flush()


class _Log(Progress):
    def __init__(self, total: int, unit: str, stream: IO[str]) -> None:
        super().__init__(total, unit, stream)
        self.written_at, self.written = self.started, 0

    def _show(self) -> None:
        waited = time.monotonic() - self.written_at
        tenth = self.done * 10 // self.total > self.written * 10 // self.total
        if waited >= _LOG_LATE or (tenth and waited >= _LOG_SOON):
            self._write()

    def _write(self) -> None:
        self.written_at, self.written = time.monotonic(), self.done
        self.stream.write(self._summary() + "\n")
        self.stream.flush()

    def close(self) -> None:
        if self.written != self.done:
            self._write()


class _Tqdm(Progress):
    def __init__(self, total: int, unit: str, stream: IO[str], tqdm: Any) -> None:
        super().__init__(total, unit, stream)
        # A terminal that does not know its size has 0 columns, in which tqdm would draw nothing.
        known = _columns(stream, 0) > 0
        size = {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
        self.bar = tqdm(total=total, unit=unit, file=stream, miniters=1, **size)

    def _show(self) -> None:
        self.bar.set_postfix_str(self.text, refresh=False)
        self.bar.update(self.done - self.bar.n)

    def _clear(self) -> None:
        self.bar.clear()

    def close(self) -> None:
        self.bar.refresh()
        self.bar.close()


def _columns(stream: IO[str], unknown: int) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or unknown
    except (OSError, ValueError):
        return unknown


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
