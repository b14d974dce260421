"""What an installed package is: small, light to import, NumPy alone, whole."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import smallpebble as sp
from smallpebble.kernels import _choice

PACKAGE = Path(sp.__file__).parent


def run(code, **environment):
    """`code` in a new interpreter that sees this package, warnings being errors."""
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_nothing_optional_is_imported():
    done = run("import sys, smallpebble; print(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    optional = {"matplotlib", "tqdm", "hypothesis", "pytest", "torch", "jax", "tensorflow", "scipy"}
    optional |= {"joblib", "threadpoolctl"}
    assert not loaded & optional
    own = {name for name in done.stdout.split() if name.startswith("smallpebble.")}
    assert not {n for n in own if n.split(".")[1] in ("cli", "datasets", "gradcheck", "selftest")}


def test_version_is_that_of_the_metadata():
    try:
        assert importlib.metadata.version("smallpebble") == sp.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("smallpebble is not installed here, only found on the path")


def test_numpy_is_the_only_requirement():
    try:
        requires = importlib.metadata.requires("smallpebble")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("smallpebble is not installed here, only found on the path")
    plain = [line for line in requires if "extra ==" not in line]
    assert [re.match(r"[\w-]+", line).group() for line in plain] == ["numpy"]


def test_files_that_users_need_are_there():
    for name in ("py.typed", "data/digits.npz", "data/README.md", "kernels/reference.py"):
        assert (PACKAGE / name).is_file(), name
    total = sum(
        path.stat().st_size for path in PACKAGE.rglob("*") if "__pycache__" not in str(path)
    )
    assert total < 4_500_000  # unpacked; the wheel itself is held under 2 MB by .ci/run


def test_without_compiled_modules_there_is_one_warning():
    hide = (
        "import sys\n"
        "for name in ('_cpu', '_pool', '_baseline', '_avx2', '_avx512'):\n"
        "    sys.modules['smallpebble.kernels.' + name] = None\n"
    )
    warned = hide + (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import smallpebble as sp\n"
        "assert [w.category.__name__ for w in seen] == ['NativeKernelsMissing'], seen\n"
        "assert sp.kernels.active() == 'reference'\n"
        "sp.set_num_threads(3)\n"
        "assert 'not compiled' in sp.show_config('dict')['tiers']['baseline']\n"
    )
    chosen = {"SMALLPEBBLE_KERNELS": ""}
    done = run(warned, **chosen)
    assert done.returncode == 0, done.stderr
    quiet = run(hide + "import smallpebble", SMALLPEBBLE_PURE="1", **chosen)
    assert quiet.returncode == 0, quiet.stderr
    asked = run(hide + "import smallpebble", SMALLPEBBLE_KERNELS="reference")
    assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize("tier", ["sse9", "avx1024", "REFERENCE "])
def test_the_environment_chooses_the_tier(tier):
    done = run("import smallpebble as sp; print(sp.kernels.active())", SMALLPEBBLE_KERNELS=tier)
    if tier.strip().lower() in sp.kernels.TIERS:
        assert done.stdout.strip() == tier.strip().lower()
    else:
        assert done.returncode != 0
        assert "ImportError" in done.stderr and "unknown kernel tier" in done.stderr


def test_use_kernels():
    before = sp.kernels.active()
    with sp.use_kernels("reference"):
        assert sp.kernels.active() == "reference"
        assert sp.kernels.matmul is sp.kernels.reference.matmul
    assert sp.kernels.active() == before
    with pytest.raises(ValueError, match="choose one of"):
        sp.use_kernels("sse9")
    assert sp.kernels.active() == before


SETTINGS = {
    "use_conv": (sp.use_conv, _choice.current, "direct", "winograd"),
    "use_kernels": (sp.use_kernels, sp.kernels.active, "reference", None),
    "set_num_threads": (sp.set_num_threads, sp.get_num_threads, 3, 2),
    "num_threads": (sp.num_threads, sp.get_num_threads, 3, 2),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_made_again_by_every_block(name, request):
    """Of one object: blocks inside of blocks, blocks after blocks, and what else is set between."""
    setting, now, value, other = SETTINGS[name]
    if name.endswith("threads"):
        request.getfixturevalue("set_num_threads")(1)
    before = now()
    assert before not in (value, other) or name == "use_kernels"
    at_once = name != "num_threads"
    block = setting(value)
    assert now() == (value if at_once else before)
    for _ in range(2):
        with block:
            assert now() == value
            with block:
                assert now() == value
            assert now() == value
            with pytest.raises(ZeroDivisionError), block:
                1 / 0  # noqa: B018
            assert now() == value
        assert now() == before
    if other is None:
        return
    with setting(other):
        block = setting(value)
        with setting(other):
            with block:
                assert now() == value
            assert now() == other
            with block, setting(other), block:
                assert now() == value
            assert now() == other
        assert now() == (value if at_once else other)
    assert now() == before
