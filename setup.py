"""Builds the compiled kernels: one extension module for each instruction set, from one source.

SMALLPEBBLE_PURE=1            build none, without a word: the library then runs on plain NumPy
SMALLPEBBLE_REQUIRE_NATIVE=1  a failing compiler is an error (without it, the same as PURE, but
                              `import smallpebble` warns)
SMALLPEBBLE_CFLAGS            more compiler flags, at the end of the line
"""

import os
import platform
import shlex
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

COMMON = ["-std=gnu11", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
          "-Wno-psabi"]  # fmt: skip
# -ffast-math is never used: it would change results, and the treatment of subnormal numbers in the
# whole process. Each tier may contract a * b + c where its instructions allow.
TIERS = {
    "_baseline": [],
    "_avx2": ["-mavx2", "-mfma", "-mtune=haswell"],
    "_avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma",
                "-mprefer-vector-width=512", "-mtune=skylake-avx512"],
}  # fmt: skip


def modules():
    names = {"_cpu": [], "_pool": [], "_baseline": TIERS["_baseline"]}
    if platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32:
        names.update(TIERS)
    extra = shlex.split(os.environ.get("SMALLPEBBLE_CFLAGS", ""))
    return [
        Extension(
            f"smallpebble.kernels.{name}",
            [f"csrc/{name}.pyx"],
            include_dirs=["csrc"],
            depends=["csrc/" + file for file in sorted(os.listdir("csrc")) if file[-2:] != ".c"],
            extra_compile_args=COMMON + flags + extra,
            extra_link_args=[*([] if sys.platform == "win32" else ["-lm", "-pthread"]), *extra],
        )
        for name, flags in names.items()
    ]


def give_up(error):
    """Go on without compiled kernels, unless they are required."""
    if os.environ.get("SMALLPEBBLE_REQUIRE_NATIVE"):
        raise error
    print(f"SmallPebble: no compiled kernels, plain NumPy instead ({error})", file=sys.stderr)


def translated():
    """The extension modules, their Cython translated to C; none where that is not possible."""
    if os.environ.get("SMALLPEBBLE_PURE") or sys.platform == "win32":
        return []
    try:
        from Cython.Build import cythonize

        return cythonize(modules(), quiet=True)
    except Exception as error:
        give_up(error)
        return []


class build_kernels(build_ext):
    """build_ext that, where nothing can be compiled, leaves a pure Python package behind."""

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def run(self):
        try:
            super().run()
        except Exception as error:
            give_up(error)
            self.extensions = []
            self.distribution.ext_modules = []


class wheel_of_what_was_built(bdist_wheel):
    """A wheel whose name says whether it has compiled modules, which is known after the build."""

    def run(self):
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


setup(
    ext_modules=translated(),
    cmdclass={"build_ext": build_kernels, "bdist_wheel": wheel_of_what_was_built},
)
