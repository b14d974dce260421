"""The one list of kernels: what binding, oracle checks, tests and benchmarks are driven by.

To add a kernel, write it in `reference.py` and in the compiled modules, and give it an entry in
`KERNELS`; `tests/test_catalogue.py` fails, naming what is missing, until every part is there.

This module is imported with the package: it holds definitions only, and arrays are made when asked
for.
"""

from functools import partial
from math import ceil, log2, prod
from typing import NamedTuple

import numpy as np

from ..shapes import Window
from . import reference


class Kernel(NamedTuple):
    """One kernel: how it is tried, timed and judged.

    Attributes
    ----------
    name : of the function in `reference` and in every compiled module
    make : function
        ``make(spec, rng, dtype)`` returns the arguments. It draws real numbers from
        ``rng.standard_normal`` and everything else from ``rng.integers``; the two must not mix, see
        `WholeNumbers`.
    specs : small sizes to try, around every width where a kernel changes its way
    timed : realistic sizes
    label : ``label(*spec)`` is a spec in a few words
    work : function
        ``work(*args)`` is (amount, "flop" or "byte"): arithmetic that the definition asks for, or
        bytes that must be read and written at least.
    bound : function or None
        ``bound(args, dtype)`` is the largest absolute error allowed, an array for each result.
        None: results have the same bits as the reference in the same dtype.
    whole : bool
        Exact on small whole numbers, because nothing but their sums and products is formed.
    writes : positions of the arguments (lists of arrays) that are updated in place
    also : further (make, specs, what) to try
    """

    name: str
    make: object
    specs: tuple
    timed: tuple
    label: object
    work: object
    bound: object = None
    whole: bool = False
    writes: tuple = ()
    also: tuple = ()

    @property
    def cases(self):
        """What to try: (label, make) with ``make(rng, dtype)`` returning arguments."""
        specs = dict.fromkeys(self.specs)  # sweeps over sizes may meet
        cases = [(self.label(*spec), partial(self.make, spec)) for spec in specs]
        for make, specs, what in self.also:
            cases += [(f"{self.label(*spec)}, {what}", partial(make, spec)) for spec in specs]
        return cases

    @property
    def bench(self):
        """What to time: (label, make, work) with ``work(args)`` returning (amount, unit)."""
        return [
            (self.label(*spec), partial(self.make, spec), lambda args: self.work(*args))
            for spec in self.timed
        ]

    @property
    def oracle(self):
        """The NumPy kernel of the same name."""
        return getattr(reference, self.name)

    def run(self, function, args):
        """What ``function(*args)`` returns and then what it writes, in one flat list.

        `args` stay as they are: what is written in place is copied first.
        """
        args = list(args)
        for i in self.writes:
            args[i] = [array.copy() for array in args[i]]
        returned = function(*args)
        return flat([returned, *(args[i] for i in self.writes)])


class WholeNumbers:
    """A random generator whose real numbers are small and whole: all sums of products are exact."""

    def __init__(self, rng):
        self.integers = rng.integers

    def standard_normal(self, shape):
        return self.integers(-8, 9, shape).astype(np.float64)


def expect(kernel, args, dtype, whole=False, wide=None):
    """(value, allowed error) for every result of `kernel`, from its oracle in a wider dtype.

    Which one that is, `wide` may say. The allowed error is None where bits must agree. `whole` says
    that `args` were drawn from `WholeNumbers`, so that a kernel which is exact on these is allowed
    no error.
    """
    if kernel.bound is None:
        return [(value, None) for value in kernel.run(kernel.oracle, args)]
    wide = np.dtype(wide or (np.float64 if np.finfo(dtype).bits < 64 else np.longdouble))
    with np.errstate(all="ignore"):
        values = kernel.run(kernel.oracle, _as_float(args, wide))
        if whole and kernel.whole:
            return [(value, np.zeros(value.shape)) for value in values]
        bounds = flat([kernel.bound(_as_float(args, np.dtype(np.float64)), dtype)])
    # Where that is no wider, as long double may be, the oracle may err by the bound as well.
    slack = 1 if np.finfo(wide).eps < np.finfo(dtype).eps else 2
    return [(value, slack * np.asarray(bound)) for value, bound in zip(values, bounds, strict=True)]


def compare(kernel, got, args, dtype, expected=None):
    """The largest error of the results `got`, as a fraction of what is allowed; fine up to 1.

    Infinite for a wrong number of results, shape or dtype, and where NaN or infinity is missing or
    out of place. `expected` is what `expect` returned, if it is at hand.
    """
    if expected is None:
        expected = expect(kernel, args, dtype)
    got = flat([got])
    if len(got) != len(expected):
        return np.inf
    worst = 0.0
    for array, (value, allowed) in zip(got, expected):
        right = value.dtype if allowed is None or value.dtype.kind != "f" else np.dtype(dtype)
        if array.shape != value.shape or array.dtype != right:
            return np.inf
        worst = max(worst, _error(array, value, allowed))
    return worst


def _error(got, value, allowed):
    if not got.size:
        return 0.0
    if allowed is None:
        return 0.0 if same_bits(got, value) else np.inf
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(value.dtype) - value)
        settled = (got == value) | (np.isnan(got) & np.isnan(value))
        fraction = np.where(settled, 0, error / allowed)
    worst = np.max(fraction)  # NaN where only one side is finite: as wrong as can be
    return np.inf if np.isnan(worst) else float(worst)


def same_bits(a, b):
    """Equal dtype, shape and values, 0.0 and -0.0 told apart; any NaN is as good as another."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    return bool(np.array_equal(a, b, equal_nan=True)) and bool(
        np.all((np.signbit(a) == np.signbit(b)) | np.isnan(a))
    )


def flat(results):
    """The arrays in nested lists and tuples of results."""
    arrays = []
    for one in results:
        arrays.extend(flat(one) if isinstance(one, (list, tuple)) else [np.asarray(one)])
    return arrays


def _as_float(args, dtype):
    """`args` with all arrays of real numbers, also those in lists, as `dtype`."""

    def convert(value):
        if isinstance(value, list):
            return [convert(one) for one in value]
        is_real = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return value.astype(dtype) if is_real else value

    return tuple(convert(value) for value in args)


# ------------------------------------------------------------------------------- allowed errors


def _u(dtype):
    """Unit roundoff: the largest relative error of one operation."""
    return float(np.finfo(dtype).eps) / 2


def _added(name, count, args, dtype):
    """Sums of up to `count(*args)` products: (count + 2) u sum(|a| |b|), in whatever order.

    The sum of absolute values is the kernel itself on absolute values. N. Higham, "Accuracy and
    Stability of Numerical Algorithms", section 3.1; the last term is for products that underflow.
    """
    n = count(*args)
    sizes = [np.abs(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in args]
    total = getattr(reference, name)(*sizes)
    return (n + 2) * _u(dtype) * total + n * float(np.finfo(dtype).smallest_subnormal)


def _summed(a, shape):
    """What `sum_to` may lose: pairwise or blocked sums, not one running sum."""
    n = a.size // max(1, prod(shape))
    return ceil(log2(max(n, 1))) + 6


def _softmax_parts(a, axis):
    """softmax, log(sum(exp)), and the relative error of softmax in units of eps.

    x - max is rounded before exp, which costs |x - max| / 2; the sum inherits the mean of that.
    """
    d = np.max(a, axis=axis, keepdims=True) - a
    p = reference.softmax(a, axis)
    inherited = np.sum(np.where(p > 0, p * d, 0), axis=axis, keepdims=True) / 2
    rounds = 4 + log2(max(a.shape[axis], 1)) / 2
    log_sum = np.log(np.sum(np.exp(-d), axis=axis, keepdims=True))
    return p, log_sum, rounds + inherited + d / 2


def _softmax_bound(args, dtype):
    a, axis = (*args, -1)[:2]
    p, _, factor = _softmax_parts(a, axis)
    return p * factor * 2 * _u(dtype) + float(np.finfo(dtype).tiny)


def _log_softmax_bound(args, dtype):
    a, axis = (*args, -1)[:2]
    _, log_sum, factor = _softmax_parts(a, axis)
    y = reference.log_softmax(a, axis)
    return (factor + 2 * np.abs(log_sum) + np.abs(y) / 2) * 2 * _u(dtype)


def _row_adds(n):
    """Roundings on the way of one term into the sum of a row: the narrow are added one by one."""
    return n if n <= 32 else ceil(log2(n)) + 6


def _softmax_grad_bound(args, dtype):
    g, y, axis = (*args, -1)[:3]
    u, least = _u(dtype), float(np.finfo(dtype).smallest_subnormal)
    n = y.shape[axis]
    total = np.sum(np.abs(g * y), axis=axis, keepdims=True)
    inner = (_row_adds(n) + 3) * u * total + n * least
    return np.abs(y) * (2 * u * np.abs(g) + inner) + least


def _log_softmax_grad_bound(args, dtype):
    """exp may err by 4 eps, as in `softmax`."""
    g, y, axis = (*args, -1)[:3]
    u, tiny = _u(dtype), float(np.finfo(dtype).tiny)
    total = np.sum(np.abs(g), axis=axis, keepdims=True)
    scaled = (np.exp(y) * (_row_adds(y.shape[axis]) + 10) * u + u * tiny) * total
    return u * np.abs(g) + scaled + u * tiny


def _cross_entropy_bound(args, dtype):
    logits, labels = args
    return _log_softmax_bound((logits,), dtype)[np.arange(len(labels)), labels]


def _cross_entropy_grad_bound(args, dtype):
    g, logits, _ = args
    size = np.abs(reference.softmax_cross_entropy_grad_logits(*args))
    tiny = float(np.finfo(dtype).tiny)
    return np.abs(g)[:, None] * _softmax_bound((logits,), dtype) + 4 * _u(dtype) * size + tiny


def _adam_bound(args, dtype):
    """A few roundings of the terms of m, of v, and of the whole step."""
    u = _u(dtype)
    parameters, gradients, means, variances, steps, alpha, beta1, beta2, eps = args
    new, m_allowed, v_allowed = [], [], []
    for p, g, m, v, t in zip(parameters, gradients, means, variances, steps):
        m = beta1 * np.abs(m) + (1 - beta1) * np.abs(g)
        v = beta2 * v + (1 - beta2) * np.square(g)
        step = alpha / (1 - beta1**t) * m / (np.sqrt(v / (1 - beta2**t)) + eps)
        new.append(u * np.abs(p) + 24 * u * step)
        m_allowed.append(6 * u * m)
        v_allowed.append(8 * u * v)
    return [new, m_allowed, v_allowed]


# -------------------------------------------------------------------------------- arrays to try

_SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65)  # around all vector widths


def _real(rng, dtype, *shape):
    return np.asarray(rng.standard_normal(shape), dtype)


def _text(shape):
    return "x".join(map(str, shape)) or "()"


# Windows: (h, w, kh, kw, sy, sx, padding)
_GEOMETRIES = (
    (6, 7, 3, 3, 1, 1, "SAME"),
    (6, 7, 3, 3, 1, 1, "VALID"),
    (7, 6, 3, 3, 2, 2, "SAME"),
    (7, 6, 3, 3, 2, 2, "VALID"),
    (8, 5, 3, 2, 2, 1, "SAME"),
    (5, 9, 2, 3, 1, 2, "VALID"),
    (5, 5, 1, 1, 1, 1, "SAME"),
    (5, 4, 1, 1, 2, 2, "VALID"),
    (6, 6, 2, 2, 2, 2, "SAME"),
    (5, 7, 2, 2, 2, 2, "SAME"),
    (5, 5, 4, 4, 1, 1, "SAME"),
    # steps longer than the window: pixels that nobody sees
    (7, 8, 2, 2, 3, 3, "SAME"),
    (7, 8, 2, 2, 3, 3, "VALID"),
    (9, 9, 1, 1, 4, 3, "SAME"),
    (3, 4, 3, 3, 9, 9, "SAME"),
    # windows larger than the image, and as large
    (2, 3, 5, 7, 1, 1, "SAME"),
    (2, 3, 5, 7, 2, 2, "SAME"),
    (1, 1, 3, 3, 1, 1, "SAME"),
    (6, 5, 5, 5, 3, 3, "SAME"),
    (4, 3, 4, 3, 1, 1, "VALID"),
    (1, 1, 1, 1, 1, 1, "VALID"),
    # thin, and rows around the vector widths
    (9, 3, 7, 1, 1, 1, "SAME"),
    (3, 9, 1, 7, 1, 1, "VALID"),
    (11, 2, 3, 3, 1, 1, "SAME"),
    (3, 16, 3, 3, 1, 1, "SAME"),
    (3, 17, 3, 3, 1, 1, "SAME"),
    (4, 33, 3, 3, 1, 1, "VALID"),
)


def _window(h, w, kh, kw, sy, sx, padding):
    return Window((h, w), (kh, kw), (sy, sx), padding)


def _windowed(n, c, geometry, m=None):
    h, w, kh, kw, sy, sx, padding = geometry
    out = "" if m is None else f"->{m}"
    return f"{n}x{h}x{w}x{c} {kh}x{kw}{out} step {sy}x{sx} {padding}"


# Convolutions: (n, c, geometry, m)
_CONVOLUTIONS = (
    (2, 3, _GEOMETRIES[0], 5),
    (2, 5, _GEOMETRIES[3], 4),
    *((2, 3, geometry, 5) for geometry in _GEOMETRIES[1:]),
    *((2, c, (4, 5, 3, 3, 1, 1, "SAME"), 6) for c in _SIZES),
    *((2, 3, (4, 5, 3, 3, 1, 1, "SAME"), m) for m in _SIZES),
    (2, 17, (5, 4, 3, 3, 1, 1, "SAME"), 33),
    (1, 33, (5, 4, 3, 3, 1, 1, "VALID"), 17),
    (1, 65, (5, 6, 3, 3, 1, 1, "VALID"), 63),
    (1, 64, (6, 5, 1, 1, 1, 1, "VALID"), 32),
    (7, 16, (5, 5, 3, 3, 2, 2, "SAME"), 32),
    (3, 19, (13, 13, 3, 3, 1, 1, "SAME"), 25),
    (1, 32, (10, 10, 5, 5, 1, 1, "SAME"), 31),
    (5, 32, (7, 7, 3, 3, 1, 1, "VALID"), 32),
    (33, 2, (3, 3, 3, 3, 1, 1, "SAME"), 3),
    (67, 1, (2, 2, 2, 2, 1, 1, "VALID"), 1),
    (3, 13, (9, 10, 3, 3, 1, 1, "SAME"), 17),
    (2, 3, (23, 25, 11, 11, 4, 4, "SAME"), 64),
    (5, 17, (12, 13, 3, 3, 1, 1, "VALID"), 19),  # by Winograd's algorithm, unless told otherwise
    (1, 17, (38, 20, 3, 3, 1, 1, "SAME"), 19),
    (3, 70, (7, 7, 3, 3, 1, 1, "SAME"), 67),  # more channels than are transformed at once
    (7, 17, (12, 13, 3, 3, 1, 1, "VALID"), 19),  # more tiles than are taken all at once
    (1, 17, (62, 20, 3, 3, 1, 1, "SAME"), 19),
    (2, 20, (9, 8, 5, 5, 1, 1, "SAME"), 3),  # kernels beyond whole vectors
    (2, 20, (9, 8, 5, 5, 1, 1, "SAME"), 36),
    (3, 17, (9, 8, 5, 5, 2, 2, "SAME"), 20),
    # few channels or kernels: windows out of columns of pixels
    (5, 1, (12, 12, 5, 5, 1, 1, "SAME"), 6),
    (5, 1, (12, 13, 3, 3, 1, 1, "VALID"), 32),
    (3, 2, (11, 19, 5, 4, 2, 3, "SAME"), 7),
    (3, 7, (12, 10, 5, 5, 1, 1, "SAME"), 5),
    (4, 19, (59, 57, 1, 1, 2, 2, "SAME"), 21),  # many pixels that make one product
    (1, 4200, (3, 2, 2, 1, 1, 1, "SAME"), 16),  # weights beyond the cache, in parts
    (1, 16, (3, 2, 2, 1, 1, 1, "SAME"), 4200),
)


def _conv2d(spec, rng, dtype):
    n, c, geometry, m = spec
    w = _window(*geometry)
    return _real(rng, dtype, n, w.h, w.w, c), _real(rng, dtype, w.kh, w.kw, c, m), w


def _conv2d_grad_images(spec, rng, dtype):
    n, c, geometry, m = spec
    w = _window(*geometry)
    return _real(rng, dtype, n, w.oh, w.ow, m), _real(rng, dtype, w.kh, w.kw, c, m), w


def _conv2d_grad_kernels(spec, rng, dtype):
    n, c, geometry, m = spec
    w = _window(*geometry)
    return _real(rng, dtype, n, w.oh, w.ow, m), _real(rng, dtype, n, w.h, w.w, c), w


_CONVOLUTIONS_BENCH = (  # the three of the CNN in the README
    (128, 3, (32, 32, 3, 3, 1, 1, "VALID"), 32),
    (128, 32, (15, 15, 3, 3, 1, 1, "VALID"), 128),
    (128, 128, (7, 7, 3, 3, 1, 1, "VALID"), 128),
)


def _conv2d_work(images, kernels, window):
    return 2 * len(images) * window.oh * window.ow * kernels.size, "flop"


def _grad_images_work(g, kernels, window):
    return 2 * len(g) * window.oh * window.ow * kernels.size, "flop"


def _grad_kernels_work(g, images, window):
    return 2 * g.size * window.kh * window.kw * images.shape[3], "flop"


# Convolutions with the pooling after them: (n, c, geometry, m, kh, kw, sy, sx, padding of the
# pool); few images are convolved and pooled in turn.
_POOLED = (
    (2, 3, _GEOMETRIES[0], 5, 2, 2, 2, 2, "SAME"),
    (17, 3, _GEOMETRIES[0], 5, 2, 2, 2, 2, "SAME"),
    (16, 3, (9, 8, 3, 3, 1, 1, "VALID"), 32, 2, 2, 2, 2, "SAME"),
    (16, 3, (9, 8, 3, 3, 1, 1, "SAME"), 7, 3, 3, 3, 3, "SAME"),
    (16, 2, (9, 8, 3, 3, 1, 1, "SAME"), 17, 2, 2, 3, 3, "VALID"),
    (16, 2, (11, 9, 5, 3, 2, 1, "SAME"), 65, 2, 3, 2, 3, "SAME"),
    (19, 1, (4, 4, 3, 3, 1, 1, "VALID"), 33, 1, 1, 1, 1, "VALID"),
    # by Winograd's algorithm, unless told otherwise
    (17, 17, (12, 13, 3, 3, 1, 1, "VALID"), 19, 2, 2, 2, 2, "SAME"),
    (16, 16, (9, 9, 3, 3, 1, 1, "SAME"), 80, 3, 2, 3, 2, "SAME"),
    # the kernels' gradient from the largest outputs alone: in place, and with padding
    (16, 32, (15, 15, 3, 3, 1, 1, "VALID"), 20, 2, 2, 2, 2, "SAME"),
    (16, 8, (12, 12, 3, 3, 1, 1, "SAME"), 65, 2, 2, 2, 2, "VALID"),
    (17, 3, (17, 19, 5, 5, 1, 1, "SAME"), 33, 3, 3, 3, 3, "SAME"),
    # the largest window
    (16, 1, (13, 12, 1, 1, 1, 1, "VALID"), 3, 11, 11, 12, 12, "VALID"),
    # in bands of rows: by Winograd's algorithm, and directly
    (1, 16, (35, 30, 3, 3, 1, 1, "SAME"), 17, 2, 2, 2, 2, "SAME"),
    (2, 2, (63, 61, 3, 3, 1, 1, "SAME"), 33, 2, 2, 3, 3, "SAME"),
)
_POOLED_BENCH = tuple((*spec, 2, 2, 2, 2, "SAME") for spec in _CONVOLUTIONS_BENCH)
_POOLED_ALPHA = 0.25  # its products are exact


def _pooled_windows(spec):
    _, _, geometry, _, *size, padding = spec
    w = _window(*geometry)
    return w, _window(w.oh, w.ow, *size, padding)


def _conv2d_maxpool2d(spec, rng, dtype):
    images, kernels, window = _conv2d(spec[:4], rng, dtype)
    return images, kernels, window, _pooled_windows(spec)[1], _POOLED_ALPHA


def _pooled_gradient(spec, rng, dtype):
    _, pool = _pooled_windows(spec)
    largest, indices = reference.maxpool2d(
        _real(rng, dtype, spec[0], pool.h, pool.w, spec[3]), pool
    )
    return _real(rng, dtype, *largest.shape), indices + np.uint8(128) * (largest < 0)


def _conv2d_maxpool2d_grad_images(spec, rng, dtype):
    _, kernels, window = _conv2d(spec[:4], rng, dtype)
    pool = _pooled_windows(spec)[1]
    return *_pooled_gradient(spec, rng, dtype), kernels, window, pool, _POOLED_ALPHA


def _conv2d_maxpool2d_grad_kernels(spec, rng, dtype):
    images, _, window = _conv2d(spec[:4], rng, dtype)
    pool = _pooled_windows(spec)[1]
    return *_pooled_gradient(spec, rng, dtype), images, window, pool, _POOLED_ALPHA


def _pooled_label(n, c, geometry, m, kh, kw, sy, sx, padding):
    return f"{_windowed(n, c, geometry, m)}, max {kh}x{kw} step {sy}x{sx} {padding}"


def _pooled_work(images, kernels, window, pool, alpha):
    return _conv2d_work(images, kernels, window)


def _pooled_grad_work(g, codes, other, window, pool, alpha):
    c = other.shape[2] if other.shape[:2] == (window.kh, window.kw) else other.shape[3]
    outputs = len(g) * window.oh * window.ow * g.shape[3]
    return 2 * outputs * window.kh * window.kw * c, "flop"


def _pooled_bound(args, dtype):
    """The convolution's; where rounding can make another cell the largest, any code is right."""
    images, kernels, window, pool, alpha = args
    error = _added("conv2d", lambda images, kernels, _: prod(kernels.shape[:3]), args[:3], dtype)
    outputs = reference.conv2d(images, kernels, window)
    largest, indices = reference.maxpool2d(outputs, pool)
    allowed = reference.maxpool2d(error, pool)[0]
    others = outputs.copy()
    others[reference.maxpool2d_scatter(np.ones_like(largest), indices, pool) == 1] = -np.inf
    second = reference.maxpool2d(others, pool)[0]
    close = (largest - second <= 2 * allowed) | (np.abs(largest) <= allowed)
    scale = max(1, abs(alpha))
    return scale * (allowed + _u(dtype) * np.abs(largest)), np.where(close, 255, 0)


# Pools and patches: (n, c, geometry)
_POOLS = (
    (2, 3, _GEOMETRIES[9]),
    (2, 5, _GEOMETRIES[0]),
    *((2, 3, geometry) for geometry in _GEOMETRIES[1:]),
    *((2, c, (5, 4, 2, 2, 2, 2, "SAME")) for c in _SIZES),
    *((1, c, (4, 5, 3, 3, 1, 1, "SAME")) for c in (1, 8, 17, 33)),
    # 256 cells, the most that an index of one byte can tell apart, and more
    (1, 2, (20, 19, 16, 16, 2, 3, "SAME")),
    (1, 2, (20, 19, 17, 16, 3, 2, "SAME")),
    (1, 3, (3, 2, 20, 20, 1, 1, "SAME")),
    (1, 17, (9, 65, 2, 2, 1, 1, "VALID")),
    # many lines of few channels
    (29, 1, (9, 17, 2, 2, 2, 2, "SAME")),
    (20, 3, (13, 11, 3, 3, 2, 2, "SAME")),
    (24, 6, (11, 7, 3, 3, 1, 1, "SAME")),
    (30, 5, (9, 11, 2, 3, 4, 2, "VALID")),
    (64, 1, (4, 400, 1, 20, 1, 1, "SAME")),
)
_POOLS_BENCH = ((128, 32, (30, 30, 2, 2, 2, 2, "SAME")),)
_PATCHES_BENCH = ((128, 32, (15, 15, 3, 3, 1, 1, "VALID")),)


def _images(spec, rng, dtype):
    n, c, geometry = spec
    w = _window(*geometry)
    return _real(rng, dtype, n, w.h, w.w, c), w


def _images_with_ties(spec, rng, dtype):
    images, w = _images(spec, rng, dtype)
    return (np.round(images) if spec[1] == 3 else images), w


def _outputs(spec, rng, dtype):
    n, c, geometry = spec
    w = _window(*geometry)
    return _real(rng, dtype, n, w.oh, w.ow, c), w


def _patches_sum(spec, rng, dtype):
    n, c, geometry = spec
    w = _window(*geometry)
    return _real(rng, dtype, n, w.oh, w.ow, w.kh, w.kw, c), w


def _gather(spec, rng, dtype):
    images, w = _images(spec, rng, dtype)
    indices = reference.maxpool2d(*_images_with_ties(spec, rng, dtype))[1]
    return images, indices, w


def _scatter(spec, rng, dtype):
    g, w = _outputs(spec, rng, dtype)
    indices = reference.maxpool2d(*_images_with_ties(spec, rng, dtype))[1]
    return g, indices, w


def _patches_work(images, window):
    n, c = len(images), images.shape[3]
    cells = n * window.oh * window.ow * window.kh * window.kw * c
    return images.nbytes + cells * images.itemsize, "byte"


def _patches_sum_work(patches, window):
    pixels = len(patches) * window.h * window.w * patches.shape[5]
    return patches.nbytes + pixels * patches.itemsize, "byte"


def _pixels(array, window):
    return len(array) * window.h * window.w * array.shape[3]


def _maxpool2d_work(images, window):
    outputs = len(images) * window.oh * window.ow * images.shape[3]
    return images.nbytes + outputs * (images.itemsize + 1), "byte"


def _gather_work(images, indices, window):
    return indices.nbytes + 2 * indices.size * images.itemsize, "byte"


def _scatter_work(g, indices, window):
    return g.nbytes + indices.nbytes + _pixels(g, window) * g.itemsize, "byte"


def _avgpool2d_work(images, window):
    outputs = len(images) * window.oh * window.ow * images.shape[3]
    return images.nbytes + outputs * images.itemsize, "byte"


def _avgpool2d_grad_work(g, window):
    return g.nbytes + _pixels(g, window) * g.itemsize, "byte"


# Sums and repetitions: (large shape, small shape)
_BROADCASTS = (
    ((3, 4, 5), (3, 1, 5)),
    ((6, 7), (7,)),
    ((5,), ()),
    ((5,), (1,)),
    ((3, 4), (4,)),
    ((3, 4), (1, 4)),
    ((3, 4), (3, 1)),
    ((3, 4), (1, 1)),
    ((3, 4), ()),
    ((3, 4), (3, 4)),
    ((), ()),
    ((1,), ()),
    ((1, 1), (1,)),
    ((2, 3, 4), (4,)),
    ((2, 3, 4), (3, 4)),
    ((2, 3, 4), (1, 3, 1)),
    ((2, 3, 4), (2, 1, 1)),
    ((2, 3, 4), (1, 1, 4)),
    ((2, 3, 4), (3, 1)),
    ((2, 3, 4, 5), (2, 1, 4, 1)),
    ((2, 3, 4, 5), (1, 3, 1, 5)),
    ((2, 3, 4, 5), (2, 1, 1, 5)),
    ((2, 3, 4, 5), (4, 1)),
    ((2, 1, 4, 1), (1, 1, 4, 1)),
    ((2, 2, 2, 2, 2, 2, 2), (2, 1, 2, 1, 2, 1)),
    ((2,) * 12, (2, 1) * 6),
    ((1,) * 30 + (3,), (1,)),
    *(((n,), ()) for n in _SIZES),
    *(((3, n), (n,)) for n in _SIZES),
    *(((n, 3), (n, 1)) for n in _SIZES),
    *(((3, n), (3, 1)) for n in _SIZES),
    *(((2, n, 17), (2, 1, 17)) for n in (2, 9, 65)),
    ((8, 5, 5, 17), (17,)),
    ((8, 5, 5, 16), (1, 1, 1, 16)),
    ((200, 100), (100,)),
    ((257, 9), (9,)),
    ((3001, 7), (7,)),
    *(((rows, n), (n,)) for rows, n in ((75, 48), (300, 32), (90, 64), (70, 128))),
    ((7, 3001), (7, 1)),
    ((100003,), ()),
    ((129, 513), ()),
    ((1031, 300), (300,)),
    ((2, 1030, 270), (2, 1, 270)),
    ((3, 2, 17000), (2, 1)),
    ((1030, 2, 9), (2, 1)),
    # nothing to add
    ((0,), ()),
    ((0,), (0,)),
    ((0, 5), (5,)),
    ((5, 0), (5, 1)),
    ((5, 0), (0,)),
    ((3, 0, 4), (3, 1, 4)),
    ((3, 0, 4), ()),
)
_BROADCASTS_BENCH = (((128, 30, 30, 32), (32,)), ((200, 100), (100,)), ((200, 784), (200, 1)))


def _arrow(a, b):
    return f"{_text(a)} -> {_text(b)}"


def _sum_to(spec, rng, dtype):
    large, small = spec
    return _real(rng, dtype, *large), small


def _broadcast_to(spec, rng, dtype):
    large, small = spec
    return _real(rng, dtype, *small), large


def _sum_to_work(a, shape):
    return a.nbytes + prod(shape) * a.itemsize, "byte"


def _broadcast_to_work(a, shape):
    return a.nbytes + prod(shape) * a.itemsize, "byte"


# Arithmetic: (shape of a, shape of b). Compiled kernels leave a few thousand results to NumPy.
_PAIRS = (
    ((205, 61), (61,)),
    ((205, 61), (205, 1)),
    ((16411,), (16411,)),
    ((131, 129), (131, 129)),
    ((16385,), ()),
    ((), (16385,)),
    ((1, 1, 1), (129, 129)),
    *(((16400 // (n + 80) + 99, n), (n,)) for n in _SIZES),
    *(((n,), (16400 // (n + 80) + 99, n)) for n in _SIZES),
    *(((16400 // (n + 80) + 99, n), (16400 // (n + 80) + 99, 1)) for n in _SIZES),
    *(((16400 // (n + 80) + 99, 1), (16400 // (n + 80) + 99, n)) for n in _SIZES),
    *(((16400 // (n + 80) + 99, 1), (n,)) for n in _SIZES),
    ((33, 511), (511,)),
    ((33, 513), (513,)),
    ((17, 1025), (17, 1)),
    ((1, 140), (140, 1)),
    ((17, 13, 31), (13, 1)),
    ((13, 1), (17, 13, 31)),
    ((9, 40, 41), (40, 1)),
    ((31, 3, 5, 17), (31, 1, 5, 17)),
    ((31, 3, 5, 17), (3, 1, 17)),
    ((31, 3, 5, 17), (31, 1, 1, 17)),
    ((31, 3, 1, 17), (3, 5, 1)),
    ((31, 1, 5, 1), (3, 1, 17)),
    ((9, 1, 70), (20, 1)),
    ((9, 1, 3), (1, 160, 1)),
    ((3, 2, 3, 2, 3, 2, 3, 20), (3, 1, 3, 1, 3, 1, 3, 1)),
    ((2, 1, 2, 1, 2, 1, 2, 1, 2, 9), (1, 2, 1, 2, 1, 2, 1, 2, 1, 9)),
    ((2, 70000), (70000,)),
    ((3, 20011), (3, 1)),
    # few, and none
    ((3, 4), (4,)),
    ((), ()),
    ((5,), ()),
    ((0, 5), (5,)),
    ((5, 0), (5, 1)),
    ((0,), (1,)),
)
_PAIRS_BENCH = (((128, 30, 30, 32), (32,)), ((64, 30, 32, 48), (30, 1, 1)), ((200, 100), (100,)))


def _pair_label(a, b):
    return f"{_text(a)} and {_text(b)}"


def _pair(spec, rng, dtype):
    a, b = spec
    return _real(rng, dtype, *a), _real(rng, dtype, *b)


def _pair_work(a, b):
    y = prod(np.broadcast_shapes(a.shape, b.shape)) * a.itemsize
    return a.nbytes + b.nbytes + y, "byte"


# Products: (shape of a, shape of b, a transposed, b transposed, a bias, a mostly zeros), the last
# four False if not said; shapes are those of the product's operands, and "transposed" that their
# memory is laid out the other way round.
_PRODUCTS = (
    ((7, 9), (9, 11)),
    ((2, 5, 6), (2, 6, 7)),
    *(((m, 7), (7, 5)) for m in _SIZES),
    *(((5, 7), (7, n)) for n in _SIZES),
    *(((3, k), (k, 4)) for k in (*_SIZES, 127, 129, 255, 256, 257, 513, 767, 768, 769, 1025)),
    *(
        (a, b, *transposed)
        for a, b in (
            ((7, 9), (9, 11)),
            ((17, 33), (33, 16)),
            ((65, 66), (66, 63)),
            ((1, 9), (9, 8)),
            ((8, 9), (9, 1)),
            ((9, 1), (1, 9)),
            ((3, 70), (70, 40)),
        )
        for transposed in ((True, False), (False, True), (True, True))
    ),
    ((13, 29), (29, 14)),
    ((48, 50), (50, 33)),
    ((64, 64), (64, 64)),
    ((31, 17), (17, 129)),
    ((100, 257), (257, 65)),
    ((33, 1537), (1537, 37)),
    # few columns beyond whole vectors, with vectors along k or along the rows of a
    *(
        ((37, 131), (131, n), *transposed)
        for n in (1, 2, 3, 4, 8, 18, 100)
        for transposed in ((False, False), (True, False), (False, True), (True, True))
    ),
    # a small product with a long k
    ((13, 2100), (2100, 17), True, False),
    ((5, 8193), (8193, 3)),
    ((50, 17000), (17000, 20), True, True),
    ((40, 3100), (3100, 29), True, False),
    ((21, 8300), (8300, 70), True, False),
    # one row, or one column, beside many columns
    *(((1, k), (k, n)) for k, n in ((40, 64), (70, 131), (33, 463), (300, 1000))),
    *(((m, 1), (1, n), *transposed) for m, n, *transposed in ((9, 64), (7, 131, True, False))),
    # a few rows beside a large b
    ((23, 300), (300, 1001)),
    # long rows or columns on the left, of which some are copied at once
    *(
        ((50, 600), (600, n), *transposed)
        for n, transposed in (
            (131, (False, False)),
            (131, (True, False)),
            (96, (False, True)),
            (96, (True, True)),
        )
    ),
    ((26, 1030), (1030, 90)),
    ((25, 520), (520, 2056), True, False),
    # mostly zeros on the left
    ((63, 1500), (1500, 137), False, False, False, True),
    ((251, 130), (130, 67), True, False, False, True),
    ((29, 41), (41, 2100), False, False, False, True),
    # vectors
    ((5,), (5,)),
    ((65,), (65,)),
    ((5,), (5, 3)),
    ((33,), (33, 17)),
    ((3, 5), (5,)),
    ((17, 33), (33,)),
    ((5,), (2, 5, 3)),
    ((2, 3, 5), (5,)),
    # batches
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((1, 3, 4), (6, 4, 5)),
    ((6, 3, 4), (1, 4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((2, 1, 3, 4), (1, 3, 4, 5)),
    ((4, 17, 9), (4, 9, 33)),
    ((4, 9, 17), (4, 17, 8), True, True),
    # nothing to multiply: zeros, or no result at all
    ((0, 3), (3, 4)),
    ((3, 4), (4, 0)),
    ((3, 0), (0, 4)),
    ((0, 0), (0, 0)),
    ((0,), (0,)),
    ((3, 0), (0,)),
    ((0,), (0, 3)),
    ((0, 2, 3), (3, 4)),
    ((2, 3, 0), (2, 0, 4)),
)
_PLAIN = (False,) * 4
_BIASED = tuple(
    (a, b, *(*options, *_PLAIN)[:2], True, (*options, *_PLAIN)[3])
    for a, b, *options in _PRODUCTS
    if len(b) > 1
)
_PRODUCTS_BENCH = (
    ((200, 784), (784, 100), False, False, True),
    ((200, 784), (784, 100), False, False, True, True),
    ((200, 100), (100, 784), False, True),
    ((784, 200), (200, 100), True, False),
    ((784, 200), (200, 100), True, False, False, True),
    ((200, 100), (100, 100), False, False),
    ((512, 512), (512, 512), False, False),
)


def _product_label(a, b, a_transposed=False, b_transposed=False, biased=False, zeros=False):
    factors = f"{_text(a)}{'t' * a_transposed} @ {_text(b)}{'t' * b_transposed}"
    return factors + " + bias" * biased + ", zeros" * zeros


def _matmul(spec, rng, dtype):
    a, b, *options = spec
    a_transposed, b_transposed, biased, zeros = (*options, *_PLAIN)[:4]
    a, b = _real(rng, dtype, *a), _real(rng, dtype, *b)
    bias = (_real(rng, dtype, b.shape[-1]),) if biased else ()
    if zeros:  # some alone, and most in columns through 30 rows: of either sign
        blocks = rng.integers(10, size=(-(-len(a) // 30), a.shape[1])) < 3
        a *= np.repeat(blocks, 30, axis=0)[: len(a)] & (rng.integers(10, size=a.shape) < 8)
    if a_transposed:
        a = np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)
    if b_transposed:
        b = np.ascontiguousarray(b.swapaxes(-1, -2)).swapaxes(-1, -2)
    return a, b, *bias


def _matmul_work(a, b, bias=None):
    return 2 * a.size * b.shape[-1], "flop"


# Activations: (shape, further arguments)
_ELEMENTWISE = (
    ((3, 5), ()),
    *(((n,), ()) for n in _SIZES),
    ((), ()),
    ((0,), ()),
    ((2, 0, 3), ()),
    ((2, 3, 4, 5), ()),
    ((1031,), ()),
    ((67, 129), ()),
    ((7,), (0.0,)),
    ((33,), (0.3,)),
    ((33,), (1.5,)),
    ((33,), (-0.1,)),
)
_ELEMENTWISE_BENCH = (((128, 30, 30, 32), ()), ((200, 100), ()))


def _elementwise_label(shape, more):
    return _text(shape) + "".join(f" alpha={alpha}" for alpha in more)


def _one_array(spec, rng, dtype):
    shape, more = spec
    return (_real(rng, dtype, *shape), *more)


def _two_arrays(spec, rng, dtype):
    shape, more = spec
    return (_real(rng, dtype, *shape), _real(rng, dtype, *shape), *more)


def _leaky_relu_work(a, alpha=0.02):
    return 2 * a.nbytes, "byte"


def _leaky_relu_grad_work(g, a, alpha=0.02):
    return 3 * a.nbytes, "byte"


# Softmax: (shape, axis or None for the default, scale of the logits)
_ROWS = (
    ((4, 5), None, 1),
    ((3, 4, 5), 1, 1),
    *(((3, c), None, 1) for c in _SIZES),
    *(((2, c), None, 5) for c in (127, 128, 129, 513, 1031, 5003)),  # around groups and blocks
    *(((c, 3), 0, 1) for c in (1, 2, 9, 33)),
    ((7,), None, 1),
    ((7,), 0, 1),
    ((3, 4, 5), 0, 1),
    ((3, 4, 5), -1, 1),
    ((3, 4, 5), -2, 1),
    ((2, 1, 6), 1, 1),
    ((200, 10), None, 5),
    ((5, 1000), None, 5),
    ((17, 9), None, 100),
    ((0, 5), None, 1),
    ((5, 0, 3), 0, 1),
)
_ROWS_BENCH = (((200, 10), None, 5), ((128, 1000), None, 5))


def _rows_label(shape, axis, scale):
    along = "" if axis is None else f" axis={axis}"
    return _text(shape) + along + ("" if scale == 1 else f" times {scale}")


def _softmax(spec, rng, dtype):
    shape, axis, scale = spec
    a = _real(rng, dtype, *shape) * scale
    return (a,) if axis is None else (a, axis)


def _softmax_grad(spec, rng, dtype):
    a, *axis = _softmax(spec, rng, dtype)
    return (_real(rng, dtype, *a.shape), reference.softmax(a, *axis), *axis)


def _log_softmax_grad(spec, rng, dtype):
    a, *axis = _softmax(spec, rng, dtype)
    return (_real(rng, dtype, *a.shape), reference.log_softmax(a, *axis), *axis)


def _rows_grad_anywhere(spec, rng, dtype):
    """What no softmax gave: numbers of either sign."""
    a, *axis = _softmax(spec, rng, dtype)
    return (_real(rng, dtype, *a.shape), a, *axis)


def _rows_grad_work(g, y, axis=-1):
    return 3 * y.nbytes, "byte"


def _rows_work(a, axis=-1):
    return 2 * a.nbytes, "byte"


# Losses: (rows, classes, dtype of the labels, scale of the logits)
_LOSSES = (
    (4, 5, np.int64, 1),
    (6, 3, np.int32, 1),
    *((3, c, np.int64, 1) for c in _SIZES),
    *((2, c, np.int64, 5) for c in (127, 128, 129, 513)),
    *((n, 4, np.int64, 1) for n in (1, 2, 9, 17)),
    (5, 6, np.uint8, 1),
    (5, 6, np.uint64, 1),
    (5, 6, np.int16, 1),
    (200, 10, np.int64, 5),
    (9, 1000, np.int64, 5),
    (17, 9, np.int64, 100),
    (0, 5, np.int64, 1),
)
_LOSSES_BENCH = ((200, 10, np.int64, 5), (128, 1000, np.int64, 5))


def _loss_label(rows, classes, labels, scale):
    return f"{rows}x{classes} {labels.__name__}" + ("" if scale == 1 else f" times {scale}")


def _cross_entropy(spec, rng, dtype):
    rows, classes, label_dtype, scale = spec
    logits = _real(rng, dtype, rows, classes) * scale
    return logits, rng.integers(0, classes, rows).astype(label_dtype)


def _cross_entropy_grad(spec, rng, dtype):
    logits, labels = _cross_entropy(spec, rng, dtype)
    return _real(rng, dtype, len(labels)), logits, labels


def _cross_entropy_work(logits, labels):
    return logits.nbytes + labels.nbytes + len(labels) * logits.itemsize, "byte"


def _cross_entropy_grad_work(g, logits, labels):
    return 2 * logits.nbytes + labels.nbytes + g.nbytes, "byte"


# Rows of a table: (shape of the table, number of indices, dtype of the indices)
_TABLES = (
    ((5, 3), 4, np.int64),
    ((6,), 9, np.int64),
    *(((7, c), 11, np.int64) for c in _SIZES),
    ((3, 2, 4), 5, np.int64),
    ((1, 4), 3, np.int64),
    ((9,), 1, np.int64),
    ((5, 3), 7, np.int32),
    ((5, 3), 7, np.uint8),
    ((5, 3), 7, np.uint64),
    ((5, 3), 7, np.int8),
    ((3, 7), 1000, np.int64),
    ((500, 17), 300, np.int64),
    ((5, 3), 0, np.int64),
    ((5, 0), 4, np.int64),
    ((0, 3), 0, np.int64),
)
_TABLES_BENCH = (((10000, 784), 200, np.int64), ((10000, 64), 2048, np.int64))


def _table_label(shape, count, indices):
    return f"{_text(shape)} at {count} {indices.__name__}"


def _take(spec, rng, dtype):
    shape, count, index_dtype = spec
    table = _real(rng, dtype, *shape)
    first = -shape[0] if np.issubdtype(index_dtype, np.signedinteger) else 0
    indices = rng.integers(first, max(shape[0], 1), count).astype(index_dtype)
    return table, indices


def _add_at(spec, rng, dtype):
    table, indices = _take(spec, rng, dtype)
    return table, indices, _real(rng, dtype, len(indices), *table.shape[1:])


def _add_at_one(spec, rng, dtype):
    """One b, or one row of it, for all indices."""
    table, indices, b = _add_at(spec, rng, dtype)
    return table, indices, b[0] if b.size else b


def _add_at_scalar(spec, rng, dtype):
    table, indices = _take(spec, rng, dtype)
    return table, indices, _real(rng, dtype)


def _add_at_grid(spec, rng, dtype):
    """Indices in two dimensions."""
    table, indices, b = _add_at(spec, rng, dtype)
    half = len(indices) // 2
    return (
        table,
        indices[: 2 * half].reshape(2, half),
        b[: 2 * half].reshape(2, half, *b.shape[1:]),
    )


def _add_at_pairs(spec, rng, dtype):
    """One index for each of two dimensions."""
    table, indices = _take(spec, rng, dtype)
    columns = rng.integers(0, table.shape[1], len(indices))
    return table, (indices, columns), _real(rng, dtype, len(indices))


def _add_at_slice(spec, rng, dtype):
    table, _ = _take(spec, rng, dtype)
    return table, slice(1, None, 2), _real(rng, dtype, *table[1::2].shape)


def _add_at_mask(spec, rng, dtype):
    table, _ = _take(spec, rng, dtype)
    mask = rng.integers(0, 2, table.shape).astype(bool)
    return table, mask, _real(rng, dtype, int(np.count_nonzero(mask)))


def _added_at(a, indices, b):
    count = np.zeros(a.shape, np.int64)
    np.add.at(count, indices, 1)
    return int(count.max(initial=0)) + 1


def _take_work(a, indices):
    return 2 * len(indices) * (a.nbytes // len(a)) + indices.nbytes, "byte"


def _add_at_work(a, indices, b):
    return 2 * a.nbytes + 3 * b.nbytes + indices.nbytes, "byte"


# Adam: (shapes of the parameters, step)
_ADAM = (
    (((3, 4), (5,)), 1),
    (((6,), (2, 3)), 7),
    *((((n,),), 3) for n in _SIZES),
    (((17,), (1,), (4, 3, 2)), 1000),
    (((0,), (3,), (2, 0)), 2),
    (((), (2,)), 4),
    (((129, 65), (65,)), 100000),
    ((), 1),
)
_ADAM_BENCH = ((((3, 3, 3, 32), (3, 3, 32, 128), (3, 3, 128, 128), (1152, 10), (10,)), 10),)


def _adam_label(shapes, step):
    return ", ".join(map(_text, shapes)) + f" step {step}"


def _adam_step(spec, rng, dtype):
    shapes, step = spec
    parameters, gradients, means, roots = ([_real(rng, dtype, *s) for s in shapes] for _ in "pgmv")
    variances = [np.asarray(np.square(root)) for root in roots]
    steps = [step] * len(shapes)
    return parameters, gradients, means, variances, steps, 0.001, 0.9, 0.999, 1e-8


def _adam_work(parameters, *_):
    return 7 * sum(p.nbytes for p in parameters), "byte"


# ------------------------------------------------------------------------------------- the list


_CONV = (_CONVOLUTIONS, _CONVOLUTIONS_BENCH, _windowed)
_POOLED_CONV = (_POOLED, _POOLED_BENCH, _pooled_label)
_POOL = (_POOLS, _POOLS_BENCH, _windowed)
_PATCH = (_POOLS, _PATCHES_BENCH, _windowed)
_BROADCAST = (_BROADCASTS, _BROADCASTS_BENCH, _arrow)
_ARITHMETIC = (_pair, _PAIRS, _PAIRS_BENCH, _pair_label, _pair_work)
_ELEMENT = (_ELEMENTWISE, _ELEMENTWISE_BENCH, _elementwise_label)
_ROW = (_ROWS, _ROWS_BENCH, _rows_label)
_LOSS = (_LOSSES, _LOSSES_BENCH, _loss_label)

KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "matmul",
            _matmul,
            # A bias among the first two, with which tests try wrong arguments.
            (_PRODUCTS[0], *_BIASED, *_PRODUCTS[1:]),
            _PRODUCTS_BENCH,
            _product_label,
            _matmul_work,
            partial(_added, "matmul", lambda a, b, *bias: a.shape[-1] + len(bias)),
            whole=True,
        ),
        Kernel(
            "conv2d",
            _conv2d,
            *_CONV,
            _conv2d_work,
            partial(_added, "conv2d", lambda images, kernels, window: prod(kernels.shape[:3])),
            whole=True,
        ),
        Kernel(
            "conv2d_grad_images",
            _conv2d_grad_images,
            *_CONV,
            _grad_images_work,
            partial(
                _added,
                "conv2d_grad_images",
                lambda g, kernels, window: window.kh * window.kw * kernels.shape[3],
            ),
            whole=True,
        ),
        Kernel(
            "conv2d_grad_kernels",
            _conv2d_grad_kernels,
            *_CONV,
            _grad_kernels_work,
            partial(_added, "conv2d_grad_kernels", lambda g, images, window: prod(g.shape[:3])),
            whole=True,
        ),
        Kernel(
            "conv2d_maxpool2d",
            _conv2d_maxpool2d,
            *_POOLED_CONV,
            _pooled_work,
            _pooled_bound,
            whole=True,
        ),
        Kernel(
            "conv2d_maxpool2d_grad_images",
            _conv2d_maxpool2d_grad_images,
            *_POOLED_CONV,
            _pooled_grad_work,
            partial(
                _added,
                "conv2d_maxpool2d_grad_images",
                lambda g, codes, kernels, window, *_: window.kh * window.kw * kernels.shape[3] + 1,
            ),
            whole=True,
        ),
        Kernel(
            "conv2d_maxpool2d_grad_kernels",
            _conv2d_maxpool2d_grad_kernels,
            *_POOLED_CONV,
            _pooled_grad_work,
            partial(
                _added,
                "conv2d_maxpool2d_grad_kernels",
                lambda g, codes, images, window, *_: len(g) * window.oh * window.ow + 1,
            ),
            whole=True,
        ),
        Kernel("patches", _images, *_PATCH, _patches_work),
        Kernel(
            "patches_sum",
            _patches_sum,
            *_PATCH,
            _patches_sum_work,
            partial(_added, "patches_sum", lambda patches, window: window.kh * window.kw),
            whole=True,
        ),
        Kernel("maxpool2d", _images_with_ties, *_POOL, _maxpool2d_work),
        Kernel("maxpool2d_gather", _gather, *_POOL, _gather_work),
        Kernel(
            "maxpool2d_scatter",
            _scatter,
            *_POOL,
            _scatter_work,
            partial(_added, "maxpool2d_scatter", lambda g, indices, window: window.kh * window.kw),
            whole=True,
        ),
        Kernel(
            "avgpool2d",
            _images,
            *_POOL,
            _avgpool2d_work,
            partial(_added, "avgpool2d", lambda images, window: window.kh * window.kw),
        ),
        Kernel(
            "avgpool2d_grad_images",
            _outputs,
            *_POOL,
            _avgpool2d_grad_work,
            partial(_added, "avgpool2d_grad_images", lambda g, window: window.kh * window.kw + 1),
        ),
        Kernel(
            "sum_to",
            _sum_to,
            *_BROADCAST,
            _sum_to_work,
            partial(_added, "sum_to", _summed),
            whole=True,
        ),
        Kernel("broadcast_to", _broadcast_to, *_BROADCAST, _broadcast_to_work),
        *(Kernel(name, *_ARITHMETIC) for name in ("add", "sub", "mul", "div")),
        Kernel("leaky_relu", _one_array, *_ELEMENT, _leaky_relu_work),
        Kernel("leaky_relu_grad_a", _two_arrays, *_ELEMENT, _leaky_relu_grad_work),
        Kernel("softmax", _softmax, *_ROW, _rows_work, _softmax_bound),
        Kernel("log_softmax", _softmax, *_ROW, _rows_work, _log_softmax_bound),
        Kernel(
            "softmax_grad_a",
            _softmax_grad,
            *_ROW,
            _rows_grad_work,
            _softmax_grad_bound,
            also=((_rows_grad_anywhere, _ROWS[:8], "any y"),),
        ),
        Kernel(
            "log_softmax_grad_a",
            _log_softmax_grad,
            *_ROW,
            _rows_grad_work,
            _log_softmax_grad_bound,
            also=((_rows_grad_anywhere, (*_ROWS[:8], ((5, 70), None, 1)), "any y"),),
        ),
        Kernel(
            "softmax_cross_entropy",
            _cross_entropy,
            *_LOSS,
            _cross_entropy_work,
            _cross_entropy_bound,
        ),
        Kernel(
            "softmax_cross_entropy_grad_logits",
            _cross_entropy_grad,
            *_LOSS,
            _cross_entropy_grad_work,
            _cross_entropy_grad_bound,
        ),
        Kernel(
            "add_at",
            _add_at,
            _TABLES,
            _TABLES_BENCH[1:],
            _table_label,
            _add_at_work,
            partial(_added, "add_at", _added_at),
            whole=True,
            also=(
                (_add_at_one, (_TABLES[0], _TABLES[1], _TABLES[9]), "one b"),
                (_add_at_scalar, (_TABLES[0], _TABLES[1]), "b of 0 dimensions"),
                (_add_at_grid, (_TABLES[0], _TABLES[12]), "indices in 2 dimensions"),
                (_add_at_pairs, (_TABLES[0], _TABLES[9]), "pairs of indices"),
                (_add_at_slice, (_TABLES[0], _TABLES[1]), "a slice"),
                (_add_at_mask, (_TABLES[0], _TABLES[1]), "a mask"),
            ),
        ),
        Kernel("take", _take, _TABLES, _TABLES_BENCH[:1], _table_label, _take_work),
        Kernel(
            "adam_step",
            _adam_step,
            _ADAM,
            _ADAM_BENCH,
            _adam_label,
            _adam_work,
            _adam_bound,
            writes=(2, 3),
        ),
    )
}
NAMES = tuple(KERNELS)
