"""Builds the compiled kernels: one extension module for each instruction set, from one source.

The Python modules that every operation runs through are compiled too, as they stand, with C types
for core.py from core.pxd: a call then costs less than half. They are installed beside their text,
which Python takes where nothing can be compiled. A build in place leaves them out, so that there
an edit counts at once, and keeps the names of C functions, for profilers.

SMALLPEBBLE_PURE=1            build none: the library then runs on plain NumPy (and warns when it is
                              imported, unless this is set then too)
SMALLPEBBLE_REQUIRE_NATIVE=1  a failing compiler is an error (without it, the same as PURE, but
                              `import smallpebble` warns)
SMALLPEBBLE_CFLAGS            more compiler flags, at the end of the line
"""

import copy
import os
import platform
import shlex
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

# Nothing here is unwound by exceptions, and the tables for it are a tenth of the code.
SMALL = ["-g0", "-fno-asynchronous-unwind-tables"]
COMMON = [*SMALL, "-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math",
          "-fvisibility=hidden", "-Wno-psabi"]  # fmt: skip
# -ffast-math is never used: it would change results, and the treatment of subnormal numbers in the
# whole process. Each tier may contract a * b + c where its instructions allow.
TIERS = {
    # For the processors of before 2013: small rather than fast to the last percent.
    "_baseline": ["-O2", "-ftree-vectorize"],
    "_avx2": ["-mavx2", "-mfma", "-mtune=haswell"],
    "_avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma",
                "-mprefer-vector-width=512", "-mtune=skylake-avx512"],
}  # fmt: skip

MORE = shlex.split(os.environ.get("SMALLPEBBLE_CFLAGS", ""))
STRIPPED = ["-Wl,-s"] if sys.platform == "linux" and "-g" not in MORE else []

PYTHON = ("core", "lazy", "ops", "optim")

# NumPy's C interface is used for its memory handlers alone, which it has since 1.22.
NUMPY = [("NPY_NO_DEPRECATED_API", "NPY_1_22_API_VERSION"),
         ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION")]  # fmt: skip


def modules():
    import numpy

    names = {"_cpu": [], "_memory": [], "_pool": [], "_baseline": []}
    if platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32:
        names.update(TIERS)
    return [
        Extension(
            f"smallpebble.kernels.{name}",
            [f"csrc/{name}.pyx"],
            include_dirs=["csrc", numpy.get_include()],
            define_macros=NUMPY,
            depends=["csrc/" + file for file in sorted(os.listdir("csrc")) if file[-2:] != ".c"],
            extra_compile_args=COMMON + flags + MORE,
            extra_link_args=["-lm", "-pthread", *STRIPPED, *MORE],
        )
        for name, flags in names.items()
    ]


def python_modules():
    return [
        Extension(
            f"smallpebble.{name}",
            [f"smallpebble/{name}.py"],
            depends=["smallpebble/core.pxd"] if name == "core" else [],
            extra_compile_args=[*SMALL, "-O2", "-w"],
            extra_link_args=STRIPPED,
        )
        for name in PYTHON
    ]


class build_kernels(build_ext):
    """build_ext that, where nothing can be compiled, leaves a pure Python package behind."""

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()
        if self.inplace and self.extensions:
            self.extensions = [e for e in self.extensions if e.name.split(".")[1] not in PYTHON]
            for extension in self.extensions:  # profilers and debuggers want names
                extension.extra_link_args = [
                    flag for flag in extension.extra_link_args if flag not in STRIPPED
                ]

    def build_extensions(self):
        from Cython.Build import cythonize

        # Annotations are for readers and type checkers, and hold no promise about a value. What can
        # be pickled says so itself.
        directives = {"language_level": 3, "annotation_typing": False, "auto_pickle": False}
        for extension in self.extensions:  # one after the other; the compilers then run together
            of_python = extension.sources[0].endswith(".py")
            extension.sources = cythonize(
                copy.copy(extension),
                quiet=True,
                compiler_directives=directives if of_python else {},
                build_dir=self.build_temp if of_python else None,
            )[0].sources
        super().build_extensions()

    def run(self):
        try:
            super().run()
        except Exception as error:
            if os.environ.get("SMALLPEBBLE_REQUIRE_NATIVE"):
                raise
            print(f"SmallPebble: not compiled, plain NumPy instead ({error})", file=sys.stderr)
            self.extensions = []
            self.distribution.ext_modules = []


class whole_source(sdist):
    """An sdist with all that the checkout has, and without the C that Cython wrote into it."""

    def make_distribution(self):
        for pattern in (
            "Makefile",
            "*.md",
            ".ci/*",
            "tests/*.c",
            "benchmarks/*.svg",
            "benchmarks/*.md",
        ):
            self.filelist.include(pattern)
        for folder in ("tests", "benchmarks", "examples"):
            self.filelist.recursive_include(folder, "*.py")
        self.filelist.recursive_exclude("csrc", "_*.c")
        super().make_distribution()


class wheel_of_what_was_built(bdist_wheel):
    """A wheel whose name says whether it has compiled modules, which is known after the build."""

    def run(self):
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


pure = os.environ.get("SMALLPEBBLE_PURE") or sys.platform == "win32" or sys.maxsize < 2**32
setup(
    ext_modules=[] if pure else modules() + python_modules(),
    cmdclass={
        "build_ext": build_kernels,
        "sdist": whole_source,
        "bdist_wheel": wheel_of_what_was_built,
    },
)
