"""Image sets to train on: MNIST and CIFAR-10 by download, small digits within the package.

A file is never trusted for lying in the right place. A download must have the SHA-256 below, and of
every file the members, sizes, shapes and dtypes are checked before an array is read. Nothing is
ever unpickled.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

# Path.home() would raise where no home is known, and with it the import of this module.
DEFAULT_SAVEDIR = Path(os.path.expanduser("~")) / ".smallpebble"

DATASETS = {
    "mnist": {
        "url": "https://github.com/sradc/smallpebble/releases/download/datasets/mnist.npz",
        "sha256": "14f88124e6bae0c4bbe34adf973c4de4babb37dc2ea068318fbe3d97ee9f3c5e",
    },
    "cifar": {
        "url": "https://github.com/sradc/smallpebble/releases/download/datasets/cifar.npz",
        "sha256": "57c1d901bb9a722adb7e1fea732053e5ebe5bfebfd81fea010171be52b881146",
    },
}


class _Layout(NamedTuple):
    """The shape of one image, the most rows a dataset's file may have, and its longest download."""

    image: tuple[int, ...]
    n_train: int
    n_test: int
    max_download: int = 0

    @property
    def columns(self) -> int:
        return math.prod(self.image)

    @property
    def max_bytes(self) -> int:
        """Largest sum of the members' sizes: uint8 pixels, labels of 8 bytes, room for headers."""
        return (self.n_train + self.n_test) * (self.columns + 8) + 4 * 4096


_MIB = 2**20
_LAYOUTS = {
    "mnist": _Layout((28, 28), 60_000, 10_000, 16 * _MIB),
    "cifar": _Layout((32, 32, 3), 50_000, 10_000, 192 * _MIB),
    "digits": _Layout((8, 8), 1_437, 360),
}
_MEMBERS = ("X_train.npy", "y_train.npy", "X_test.npy", "y_test.npy")
_N_CLASSES = 10
_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_SCHEMES = ("https",)
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 64 * 1024


def load_data(
    name: Literal["mnist", "cifar", "digits"], savedir: str | os.PathLike[str] | None = None
) -> _Arrays:
    """Load a set of labelled images, downloading it first where it is not there yet.

    Parameters
    ----------
    name : {"mnist", "cifar", "digits"}
        "mnist": 28x28 grey digits, 60,000 and 10,000 (11.5 MB). "cifar": CIFAR-10, 32x32 RGB,
        50,000 and 10,000 (170 MB). "digits": 8x8 grey digits, 1,437 and 360, part of the package:
        no download.
    savedir : path, optional
        Folder of `<name>.npz`; default the environment variable SMALLPEBBLE_DATA, else
        `~/.smallpebble`. It is made when something is downloaded. A file already there is checked
        and used, never changed; it may hold fewer images. Not used for "digits".

    Returns
    -------
    X_train, y_train, X_test, y_test : ndarray
        Images (n, height * width * channels), uint8, 0 to 255 (digits: 0 to 16); labels (n,), of an
        integer dtype, 0 to 9.

    Raises
    ------
    ValueError
        The name is unknown; or the file is damaged, or is not that dataset.
    TypeError
        `name` is not a string, or `savedir` is not a path.
    OSError
        The download failed (ConnectionError), or the folder or the file cannot be used.
    """
    if not isinstance(name, str):
        raise TypeError(f"load_data: name must be a string, got {type(name).__name__}")
    if name not in _LAYOUTS:
        choices = ", ".join(map(repr, _LAYOUTS))
        raise ValueError(f"load_data: name must be one of {choices}, got {name!r}")
    if savedir is not None and not isinstance(savedir, (str, os.PathLike)):
        raise TypeError(f"load_data: savedir must be a path or None, got {type(savedir).__name__}")

    if name == "digits":
        path = Path(__file__).parent / "data" / "digits.npz"
        return _load(path, name, "Reinstall smallpebble.")
    path = _folder(savedir) / f"{name}.npz"
    # Something that is no file, as a broken link, is the user's too, and is not replaced.
    if not os.path.lexists(path):
        _download(name, path)
    elif path.exists() and not path.is_file():
        raise ValueError(f"load_data: {path} is not a file; move it away to download {name}")
    return _load(path, name, "Delete it to have it downloaded again.")


def _folder(savedir: str | os.PathLike[str] | None) -> Path:
    folder = Path(savedir or os.environ.get("SMALLPEBBLE_DATA") or DEFAULT_SAVEDIR)
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise OSError(
            f"load_data: no home folder is known for {folder}; pass savedir, or set "
            "SMALLPEBBLE_DATA to a folder"
        ) from error


# ---- reading ----


def _load(path: Path, name: str, remedy: str) -> _Arrays:
    """Check and read a dataset's file; a ValueError says what is wrong, and `remedy`."""
    import zipfile
    import zlib

    failures = (
        ValueError,
        EOFError,
        RuntimeError,  # with NotImplementedError, for what zipfile does not support
        zipfile.BadZipFile,
        zlib.error,
    )
    # Opened once, so that what was checked is what is read.
    with open(path, "rb") as file:
        try:
            return _read(file, _LAYOUTS[name])
        except failures as error:
            reason = str(error) or "it ends too early"
            raise ValueError(
                f"load_data: {path} is damaged or is not a {name} file: {reason}. {remedy}"
            ) from error


def _read(file: IO[bytes], layout: _Layout) -> _Arrays:
    """The four arrays of an open npz file, every size checked before anything is allocated."""
    import zipfile

    limit = f"the whole dataset has at most {layout.max_bytes:,}"
    # zipfile reads the directory whole, so its size is bounded through the file's. Compression may
    # lengthen what it cannot shorten, but by far less than twice.
    size = os.fstat(file.fileno()).st_size
    if size > 2 * layout.max_bytes:
        raise ValueError(f"it has {size:,} bytes, {limit}")

    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        names = [info.orig_filename for info in infos]
        if sorted(names) != sorted(_MEMBERS):
            some = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"its members must be {', '.join(_MEMBERS)}, but they are {some}")
        total = sum(info.file_size for info in infos)
        if total > layout.max_bytes:
            raise ValueError(f"its arrays claim {total:,} bytes, {limit}")
        for info in infos:
            # What np.savez writes; other methods take as much memory as the file asks for.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is neither stored nor deflated")
            if info.header_offset < 0:
                raise ValueError(f"{info.filename} has a negative position")

        infos.sort(key=lambda info: _MEMBERS.index(info.filename))
        n_rows = [_check_header(archive, info, layout) for info in infos]
        for part, n_images, n_labels in (("train", *n_rows[:2]), ("test", *n_rows[2:])):
            if n_images != n_labels:
                raise ValueError(f"X_{part} has {n_images} rows, but y_{part} has {n_labels}")
        X_train, y_train, X_test, y_test = (_read_array(archive, info) for info in infos)

    for part, labels in (("train", y_train), ("test", y_test)):
        low, high = labels.min(), labels.max()
        if low < 0 or high >= _N_CLASSES:
            raise ValueError(
                f"y_{part} has labels from {low} to {high}, but they must be 0 to {_N_CLASSES - 1}"
            )
    return X_train.reshape(len(X_train), -1), y_train, X_test.reshape(len(X_test), -1), y_test


def _check_header(archive: Any, info: Any, layout: _Layout) -> int:
    """Check what one member's header claims against the layout; return its number of rows."""
    member = info.filename
    shape, dtype, n_header = _read_header(archive, info)
    is_images = member.startswith("X")
    if is_images:
        if dtype != np.uint8:
            raise ValueError(f"{member} must be uint8, but it is {dtype}")
        # Stored flat or as images, the bytes are the same.
        if shape[1:] not in ((layout.columns,), layout.image):
            raise ValueError(f"{member} must be of shape (n, {layout.columns}), but it is {shape}")
    else:
        if dtype.kind not in "iu":
            raise ValueError(f"{member} must be of integers, but it is {dtype}")
        if len(shape) != 1:
            raise ValueError(f"{member} must be of shape (n,), but it is {shape}")
    max_rows = layout.n_train if "train" in member else layout.n_test
    if not 0 < shape[0] <= max_rows:
        raise ValueError(f"{member} must have 1 to {max_rows} rows, but it has {shape[0]}")

    size = n_header + shape[0] * (layout.columns if is_images else 1) * dtype.itemsize
    if info.file_size != size:
        raise ValueError(
            f"{member} must have {size} bytes for {dtype} {shape}, but it has {info.file_size}"
        )
    return shape[0]


def _read_header(archive: Any, info: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and length of one member's npy header; nothing behind it is read."""
    from numpy.lib import format as npy

    # Version 3.0 differs in the names of fields only, and these arrays have none.
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        with archive.open(info) as stream:
            version = npy.read_magic(stream)
            if version not in readers:
                raise ValueError(f"version {version} is not supported")
            # NumPy hands the header to Python's own parser, which nested text could exhaust.
            shape, _, dtype = readers[version](stream, max_header_size=1024)
            return shape, dtype, stream.tell()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # no list of what parsing a hostile header raises is complete
        reason = str(error) or "it ends too early"
        raise ValueError(f"{info.filename} cannot be read: {reason}") from error


def _read_array(archive: Any, info: Any) -> np.ndarray:
    from numpy.lib import format as npy

    # A checked size means reading to the member's end, which is where zipfile compares the CRC.
    with archive.open(info) as stream:
        return npy.read_array(stream, allow_pickle=False)


# ---- downloading ----


def _download(name: str, path: Path) -> None:
    """Fetch a dataset to `path`, which appears whole and with the right SHA-256, or not at all."""
    import hashlib
    import secrets

    url, sha256 = DATASETS[name]["url"], DATASETS[name]["sha256"]
    digest = hashlib.sha256()
    # Not by tempfile, whose files only their owner may read: the folder may be a shared one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = _fetch(url, path.name, _LAYOUTS[name].max_download)
        with closing(blocks), open(temporary, "xb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise ConnectionError(f"its SHA-256 is {digest.hexdigest()}, but must be {sha256}")
        # What has appeared meanwhile is another process's download, or the user's own file.
        if not os.path.lexists(path):
            os.replace(temporary, path)
    except ConnectionError as error:
        raise ConnectionError(
            f"load_data: cannot download {name} from {url}: {error}. Put the file at {path} "
            f"yourself, or set SMALLPEBBLE_DATA to a folder that has {path.name}."
        ) from error
    except OSError as error:
        raise OSError(
            error.errno,
            f"load_data: cannot save {name} in {path.parent}: {error.strerror or error}. Pass "
            "savedir, or set SMALLPEBBLE_DATA, to name a folder with room that can be written",
        ) from error
    finally:
        # unlink(missing_ok=True) would raise, and hide the error, where the folder is a file.
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _fetch(url: str, label: str, max_bytes: int) -> Generator[bytes, None, None]:
    """Yield what is at `url` in blocks, showing progress; a ConnectionError says what failed."""
    import http.client
    import urllib.error
    import urllib.request

    def check_scheme(address: str) -> None:
        scheme = address.partition(":")[0].lower()
        if scheme not in _SCHEMES:
            # Not the address, which may carry a token.
            raise ValueError(f"a {scheme} address is refused, it must be {' or '.join(_SCHEMES)}")

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(
            self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> urllib.request.Request | None:
            try:
                check_scheme(newurl)
            except ValueError:
                fp.close()
                raise
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    # `yield` stays outside of these: an error of the consumer is not one of the connection.
    failures = (OSError, http.client.HTTPException, ValueError)
    try:
        check_scheme(url)
        response = urllib.request.build_opener(Redirects).open(url, timeout=_TIMEOUT)
    except failures as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise ConnectionError(str(error) or type(error).__name__) from error

    with response:
        length = response.length
        if length is not None and length > max_bytes:
            raise ConnectionError(f"it has {length:,} bytes, more than the {max_bytes:,} allowed")
        received = 0
        with closing(_Progress(label, length)) as progress:
            while True:
                try:
                    block = response.read(_BLOCK)
                except failures as error:
                    reason = str(error) or type(error).__name__
                    raise ConnectionError(f"{reason}, after {received:,} bytes") from error
                if not block:
                    break
                received += len(block)
                if received > max_bytes:
                    raise ConnectionError(f"it has more than the {max_bytes:,} bytes allowed")
                progress.add(len(block))
                yield block
        if length is not None and received != length:
            raise ConnectionError(f"it ended after {received:,} of {length:,} bytes")


class _Progress:
    """How much has come: by tqdm if installed, else a line redrawn (terminal) or repeated (log)."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total = label, total
        self.done, self.shown = 0, -1
        self.stream = sys.stderr
        self.bar: Any = None
        if self.stream is None:  # as under pythonw
            return
        try:
            from tqdm import tqdm  # type: ignore[import-untyped]
        except ImportError:
            self.redraw = self.stream.isatty()
            self.pause = 0.1 if self.redraw else 10.0  # seconds
            self.due = time.monotonic()
        else:
            self.bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, file=self.stream)

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self.bar is not None:
            self.bar.update(n_bytes)
        elif self.stream is not None and time.monotonic() >= self.due:
            self._show()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.stream is not None:
            if self.shown != self.done:
                self._show()
            if self.redraw:
                print(file=self.stream, flush=True)

    def _show(self) -> None:
        self.shown, self.due = self.done, time.monotonic() + self.pause
        line = f"{self.label}: {self.done / 1e6:.1f}"
        if self.total is not None:
            line += f" of {self.total / 1e6:.1f}"
        # A redrawn line needs no blanks to cover the one before: the amount only grows.
        start, end = ("\r", "") if self.redraw else ("", "\n")
        print(f"{start}{line} MB", end=end, file=self.stream, flush=True)
