"""What is set for the whole process: at once by a call, or for ``with`` blocks."""

from __future__ import annotations


class Setting:
    """Set `wanted` now, and in every ``with`` block of this object, nested ones and later ones too.

    A block ends with what was set where it began; the first one also takes back the call, unless
    something else has been set since. A subclass has `_now` and `_set`, which read and write.
    """

    def __init__(self, wanted) -> None:
        self._wanted = wanted
        self._call = [self._now()]  # what was set before the call, until a block begins
        self._blocks = []  # what was set before each block
        self._set(wanted)

    def __enter__(self):
        before = self._now()
        if before != self._wanted:
            self._set(self._wanted)
        elif self._call:
            before = self._call[0]
        self._call = []
        self._blocks.append(before)
        return self

    def __exit__(self, *exc) -> None:
        self._set((self._blocks or self._call).pop())
