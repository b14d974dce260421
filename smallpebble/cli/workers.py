"""Processes that work for a command, each with one library and in an interpreter of its own.

What they run is `peers.py`, perhaps with more requests from another file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import CommandError

_SECONDS_TO_START, _SECONDS_TO_ANSWER = 180, 300


class WorkerError(Exception):
    """A worker process failed; the message is one line."""


class Worker:
    """A process that is asked one thing at a time.

    Parameters
    ----------
    library : name of the library that it loads
    python : its interpreter
    threads : how many threads the library may use
    folder : for files that both sides read
    requests : path of a file with more requests than `peers.py` has
    environment : variables that it gets beside ours

    Attributes
    ----------
    name : the library and its version
    about : what the worker said of itself when it had loaded the library
    """

    def __init__(
        self,
        library: str,
        python: str,
        threads: int,
        folder: str,
        requests: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.library, self.folder = library, folder
        variables = dict(os.environ)
        # Its packages are its own.
        for variable in ("PYTHONPATH", "PYTHONHOME"):
            variables.pop(variable, None)
        for prefix in ("OMP", "OPENBLAS", "MKL", "SMALLPEBBLE"):
            variables[f"{prefix}_NUM_THREADS"] = str(threads)
        command = [python, str(Path(__file__).with_name("peers.py"))]
        self.stderr = tempfile.TemporaryFile(dir=folder)
        try:
            self.process = subprocess.Popen(
                command + ([str(requests)] if requests else []),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                env=variables | dict(environment or {}),
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for us, who end it
            )
        except OSError as error:
            raise WorkerError(f"cannot run {python}: {error.strerror}") from None
        assert self.process.stdin and self.process.stdout
        self.requests, self.output = self.process.stdin, self.process.stdout
        self.answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            request = {"do": "load", "library": library, "threads": threads}
            self.about = self.ask(request, _SECONDS_TO_START)
        except BaseException:
            self.close()
            raise
        self.name = f"{library} {self.about['version']}"

    def _listen(self) -> None:
        for line in self.output:
            self.answers.put(line)
        self.answers.put("")

    def ask(self, request: dict, seconds: float = _SECONDS_TO_ANSWER) -> dict[str, Any]:
        """The answer to a request. Raises WorkerError if it fails, or takes too long."""
        try:
            self.requests.write(json.dumps(request) + "\n")
            self.requests.flush()
            line = self.answers.get(timeout=seconds)
        except OSError:
            line = ""
        except queue.Empty:
            self.close()
            raise WorkerError(f"no answer within {seconds:.0f} s") from None
        if not line:
            raise WorkerError(f"its process ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self.process.wait(10)
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        return lines[-1] if lines else f"exit code {self.process.returncode}"

    def close(self) -> None:
        """End the process: it stops when nobody can ask any more."""
        with contextlib.suppress(OSError):
            self.requests.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()
        self.stderr.close()


def check_peers(
    asked: Sequence[tuple[str, str]], choices: Sequence[str]
) -> list[tuple[str, str, str]]:
    """(name, library, path of the interpreter) for each NAME=PYTHON of a command line.

    A name may have a version behind a hyphen, as ``smallpebble-3.0.5`` has.
    """
    known = [choice.split("-")[0] for choice in choices]
    found = []
    for name, python in asked:
        library = name.split("-")[0]
        if library not in known:
            raise CommandError(f"--peer: {name!r} is unknown: choose from {', '.join(choices)}")
        path = shutil.which(python)
        if path is None:
            raise CommandError(f"--peer: there is no interpreter {python!r}")
        found.append((name, library, path))
    return found
