"""Files that a command writes: checked before the work begins, and never left half written."""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import EXIT_FAILED, CommandError


def writable(path: str | None, option: str) -> Path | None:
    """The absolute path of a file to be written; a CommandError if that cannot work.

    None, for an option that was not given, stays None.
    """
    if path is None:
        return None
    try:
        # A link stays a link: what it points to is written.
        target = Path(os.path.realpath(path))
        if not os.path.basename(path):
            raise CommandError(f"{option}: {path!r} does not name a file")
        if not target.parent.is_dir():
            raise CommandError(f"{option}: there is no folder {target.parent}")
        try:
            ordinary = stat.S_ISREG(os.lstat(target).st_mode)
        except FileNotFoundError:
            ordinary = True
        if not ordinary:
            raise CommandError(f"{option}: {target} exists and is not an ordinary file")
        # Asking for permissions is not enough: a disk may be mounted read-only.
        trial = _temporary(target)
        os.close(os.open(trial, _NEW))
        os.unlink(trial)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandError(f"{option}: cannot write {path!r}: {reason}") from None
    return target


def write(path: Path, content: Callable[[IO[bytes]], object]) -> None:
    """Let `content` write into a file that takes the place of `path` once it is complete.

    Until then, and if anything fails, `path` stays as it was.
    """
    temporary = _temporary(path)
    try:
        # O_EXCL: never through a link that somebody put there. The mode is the user's umask's.
        with os.fdopen(os.open(temporary, _NEW, 0o666), "wb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}", EXIT_FAILED) from None
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def write_json(path: Path, report: dict) -> None:
    """Write `report` as JSON; NaN and infinities, which JSON does not know, become null."""
    text = json.dumps(_plain(report), indent=1, allow_nan=False) + "\n"
    write(path, lambda file: file.write(text.encode()))


def _plain(value: Any) -> Any:
    """`value` in what JSON knows."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return str(value)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def _temporary(path: Path) -> str:
    # A short name of its own: appended to the user's, it could become too long.
    return os.path.join(path.parent, f".smallpebble-{secrets.token_hex(8)}.tmp")


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where the system has a way to say so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # as on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
