"""``python -m smallpebble train``: a net, real images, progress, a picture, a file."""

from __future__ import annotations

import argparse
import math
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

import smallpebble as sp
from smallpebble.datasets import load_data

from . import EXIT_FAILED, EXIT_INTERRUPTED, CommandError, files, models, plot
from .progress import open_progress


class _Data(NamedTuple):
    """A kind of images: shape of one, largest pixel, how many to validate on while training."""

    image_shape: tuple[int, int, int]
    largest: int
    n_validate: int


_DATA = {
    "digits": _Data((8, 8, 1), 16, 360),
    "mnist": _Data((28, 28, 1), 255, 1000),
    "cifar": _Data((32, 32, 3), 255, 500),
}

_DEFAULTS = {  # steps, batch, step size
    ("mlp", "digits"): (1000, 64, 0.01),
    ("cnn", "digits"): (600, 64, 0.01),
    ("mlp", "mnist"): (1500, 200, 0.005),
    ("cnn", "mnist"): (600, 100, 0.005),
    ("mlp", "cifar"): (1500, 100, 0.002),
    ("cnn", "cifar"): (800, 100, 0.003),
}

_N_VALIDATIONS = 50
_EVALUATION_BATCH = 500


def run(args: argparse.Namespace) -> int:
    """Carry out the ``train`` subcommand."""
    default_steps, default_batch, default_rate = _DEFAULTS[args.model, args.data]
    n_steps = args.steps or default_steps
    batch = args.batch or default_batch
    rate = args.lr or default_rate
    plot_path = plot.check(args.plot)
    save_path = files.writable(args.save, "--save")
    if plot_path is not None and plot_path == save_path:
        raise CommandError(f"--plot and --save name the same file, {save_path}")

    data = _DATA[args.data]
    try:
        X_train, y_train, X_test, y_test = load_data(args.data)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from None
    if batch > len(X_train):
        raise CommandError(
            f"--batch: {batch} is more than the {len(X_train):,} training images of {args.data}"
        )

    rng = np.random.default_rng(args.seed)
    if args.model == "mlp":
        model = models.mlp(math.prod(data.image_shape), dtype=args.dtype, rng=rng)
    else:
        model = models.cnn(data.image_shape, dtype=args.dtype, rng=rng)
    print(
        f"Training: {args.model}, {_size(model):,} parameters; {args.data}, "
        f"{len(X_train):,} images and {len(X_test):,} held out; {_steps(n_steps)} of {batch} "
        f"images, {args.dtype}, {sp.kernels.active()} kernels.",
        flush=True,
    )

    batches = sp.batch(X_train, y_train, batch, seed=args.seed)
    training = _Training(model, data.largest, batches, n_steps, rate)
    with _Interrupts() as interrupts:
        training.run(X_test[: data.n_validate], y_test[: data.n_validate], interrupts)
        done = len(training.losses)
        # Said once the files are written: who reads our output may have gone, as `tee` does when
        # the same Ctrl-C reaches it, and printing would be the end of us.
        lines = [f"Interrupted after step {done} of {n_steps}."] if interrupts.count else []
        try:
            if not done:
                lines.append("Nothing was trained, so nothing is written.")
                return EXIT_INTERRUPTED
            asked = interrupts.count
            correct = _count_correct(
                model, X_test, y_test, data.largest, lambda: interrupts.count > asked
            )
            if correct is None:
                accuracy = math.nan
                lines.append("Interrupted: the final validation accuracy was not measured.")
            else:
                accuracy = correct / len(X_test)
                training.add_accuracy(done, accuracy)
                lines.append(
                    f"Final validation accuracy: {accuracy:.4f} ({correct} of {len(X_test)} "
                    f"images), after {training.seconds:.1f} s of training"
                )
            if plot_path is not None:
                title = f"{args.model.upper()} on {args.data}: {_steps(done)} of {batch} images"
                plot.training(plot_path, title, training.losses, training.accuracies)
                lines.append(f"Curves: {plot_path}")
            if save_path is not None:
                about = {
                    "model": args.model,
                    "data": args.data,
                    "steps": done,
                    "seed": args.seed,
                    "accuracy": accuracy,
                }
                save(save_path, model, about)
                lines.append(f"Parameters: {save_path}")
        finally:
            print("\n".join(lines), flush=True)
        return EXIT_INTERRUPTED if interrupts.count else 0


def _steps(n: int) -> str:
    return f"{n} step" if n == 1 else f"{n} steps"


class _Training:
    """The loop, and what it has seen: the loss of each step, (step, accuracy) now and then."""

    def __init__(self, model: models.Model, largest: int, batches, n_steps: int, rate: float):
        self.model, self.largest, self.batches = model, largest, batches
        self.n_steps, self.rate = n_steps, rate
        self.losses: list[float] = []
        self.accuracies: list[tuple[int, float]] = []
        self.seconds = 0.0

    def run(self, X: np.ndarray, y: np.ndarray, interrupts: _Interrupts) -> None:
        """Train until the last step or the first interrupt, validating on `X`, `y`."""
        optimizer = sp.Adam(alpha=self.rate)
        started = time.monotonic()
        # A loss or parameter that overflows is reported below, in words of the command's own.
        with (
            open_progress(self.n_steps, "step") as progress,
            np.errstate(over="ignore", invalid="ignore", divide="ignore"),
        ):
            for step in range(1, self.n_steps + 1):
                if interrupts.count:
                    break
                optimizer.alpha = self.rate * (1 - (step - 1) / self.n_steps)
                images, labels = next(self.batches)
                images = _scaled(images, self.largest, self.model.dtype)
                loss = self.model.train_step(optimizer, images, labels)
                if not math.isfinite(loss):
                    raise _diverged(f"the loss became {loss}", step)
                self.losses.append(loss)
                if interrupts.count:
                    break
                if step * _N_VALIDATIONS // self.n_steps > (
                    (step - 1) * _N_VALIDATIONS // self.n_steps
                ):
                    correct = _count_correct(self.model, X, y, self.largest)
                    if correct is not None:
                        self.add_accuracy(step, correct / len(X))
                text = f"loss {loss:.4f}"
                if self.accuracies:
                    text += f"  accuracy {self.accuracies[-1][1]:.4f}"
                progress.update(step, text)
        self.seconds = time.monotonic() - started
        if not all(np.isfinite(v.array).all() for v in self.model.parameters.values()):
            raise _diverged("a parameter is no longer finite", len(self.losses))

    def add_accuracy(self, step: int, accuracy: float) -> None:
        """Note the accuracy after `step`, in place of one noted for the same step."""
        if self.accuracies and self.accuracies[-1][0] == step:
            self.accuracies.pop()
        self.accuracies.append((step, accuracy))


def _diverged(what: str, step: int) -> CommandError:
    return CommandError(
        f"{what} at step {step}: training stopped, nothing was written. Try a smaller --lr.",
        EXIT_FAILED,
    )


def _scaled(images: np.ndarray, largest: int, dtype: np.dtype) -> np.ndarray:
    return images.astype(dtype) / dtype.type(largest)


def _count_correct(
    model: models.Model,
    X: np.ndarray,
    y: np.ndarray,
    largest: int,
    stop: Callable[[], bool] = lambda: False,
) -> int | None:
    """How many of `X` the model classifies as `y` says; None if `stop` came true meanwhile."""
    correct = 0
    for i in range(0, len(X), _EVALUATION_BATCH):
        if stop():
            return None
        part = slice(i, i + _EVALUATION_BATCH)
        predicted = model.predict(_scaled(X[part], largest, model.dtype))
        correct += int(np.count_nonzero(predicted == y[part]))
    return correct


def _size(model: models.Model) -> int:
    return sum(variable.array.size for variable in model.parameters.values())


class _Interrupts:
    """Counts Ctrl-C within a ``with`` block instead of raising, so that no step is cut in half.

    The first ends the training, the second the final evaluation, the third everything.
    """

    def __init__(self) -> None:
        self.count = 0
        self._previous: Any = None

    def __enter__(self) -> _Interrupts:
        # Signals reach the main thread only; and who started us may want them ignored.
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: object) -> None:
        self.count += 1
        if self.count > 2:
            raise KeyboardInterrupt


def save(path: Path, model: models.Model, about: dict[str, object]) -> None:
    """Write the parameters by name, and what `about` says of them, as an npz file, whole or not."""
    arrays = {name: variable.array for name, variable in model.parameters.items()}
    arrays |= {name: np.asarray(value) for name, value in about.items()}

    def content(file: IO[bytes]) -> None:
        # As np.savez does, but refusing to pickle, which in np.savez not every NumPy can.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    files.write(path, content)
