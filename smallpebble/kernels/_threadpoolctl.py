"""threadpoolctl, where a program uses it, sees the pool of the kernels and can limit it.

threadpoolctl knows the libraries for which a controller has been registered. If it is imported
already, ours is registered at once; if it is imported later, a finder on `sys.meta_path` notices
and then goes away. It is never imported from here.
"""

from __future__ import annotations

import sys

from . import _threads

_NAME = "threadpoolctl"


def start(pool) -> None:
    """Have the pool controlled by threadpoolctl, now or when it is imported."""
    if _NAME in sys.modules:
        _register(sys.modules[_NAME], pool)
    else:
        sys.meta_path.insert(0, _Finder(pool))


def _register(threadpoolctl, pool) -> None:
    if not hasattr(threadpoolctl, "register"):  # older than 3.2, or half imported
        return

    class SmallPebbleController(threadpoolctl.LibController):
        """The pool: one for the whole process."""

        user_api = "smallpebble"
        internal_api = "smallpebble"
        filename_prefixes = ("_pool.",)
        check_symbols = ("smallpebble_get_num_threads",)

        def get_version(self):
            from .._version import __version__

            return __version__

        def get_num_threads(self):
            return pool.get_num_threads()

        def set_num_threads(self, num_threads):
            # After a block every library is set back, also those that were left alone.
            wanted = max(1, min(int(num_threads), _threads.MOST))
            if wanted != pool.get_num_threads():
                _threads.use(pool, wanted, _NAME)

    threadpoolctl.register(SmallPebbleController)


class _Finder:
    """Finds threadpoolctl by means of the other finders, and lends it a loader that registers."""

    def __init__(self, pool) -> None:
        self._pool = pool

    def find_spec(self, name, path=None, target=None):
        if name != _NAME:
            return None
        others = [f for f in sys.meta_path if f is not self and hasattr(f, "find_spec")]
        for finder in others:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def loaded(self, module) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _register(module, self._pool)


class _Loader:
    """The loader of threadpoolctl for the time of its import, and what has to follow."""

    def __init__(self, loader, finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.loaded(module)
