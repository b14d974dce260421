"""The kernels in plain NumPy: what each one means, in its shortest form.

They are the oracle that the compiled kernels are tested against, the fallback where nothing is
compiled, and the place to read what a kernel does. Functions here take and return ndarrays of any
real dtype, never write into an argument (`adam_step` names the one exception), and know nothing of
Variables. Sizes: n images of h x w pixels and c channels; a window of kh x kw cells; oh x ow
outputs; m output channels.
"""

import numpy as np

# --------------------------------------------------------------------------- windows over images


def _taps(window):
    """For each cell of the window: (ky, kx), the outputs it serves, the pixels that they see there.

    Outputs and pixels are indices into (n, oh, ow, ...) and (n, h, w, ...). Padding never shows:
    outputs whose cell lies outside of the image are left out.
    """

    def span(k, size, stride, before, outputs):
        first = max(0, -((k - before) // stride))
        last = min(outputs - 1, (size - 1 + before - k) // stride)
        start = first * stride - before + k
        pixels = slice(start, start + (last - first) * stride + 1, stride)
        return (slice(first, last + 1), pixels) if first <= last else None

    def spans(kernel, size, stride, before, outputs):
        # A cell that touches the image somewhere: before - (outputs-1)*stride <= k < before + size.
        low, high = max(0, before - (outputs - 1) * stride), min(kernel, before + size)
        found = ((k, span(k, size, stride, before, outputs)) for k in range(low, high))
        return [(k, *s) for k, s in found if s is not None]

    h, w, kh, kw, sy, sx, top, left, oh, ow = window
    columns = spans(kw, w, sx, left, ow)
    for ky, oy, iy in spans(kh, h, sy, top, oh):
        for kx, ox, ix in columns:
            yield (ky, kx), (slice(None), oy, ox), (slice(None), iy, ix)


def _need(condition, name, *arrays):
    if not condition:
        shapes = ", ".join(str(np.shape(a)) for a in arrays)
        raise ValueError(f"{name}: these shapes do not fit the window or each other: {shapes}")


def _is_image(a, window):
    return a.ndim == 4 and a.shape[1:3] == (window.h, window.w)


def _is_output(a, window):
    return a.ndim == 4 and a.shape[1:3] == (window.oh, window.ow)


def conv2d(images, kernels, window):
    """Cross-correlation: (n, h, w, c) images, (kh, kw, c, m) kernels -> (n, oh, ow, m)."""
    fits = _is_image(images, window) and kernels.ndim == 4
    fits = fits and kernels.shape[:3] == (window.kh, window.kw, images.shape[3])
    _need(fits, "conv2d", images, kernels)
    shape = (len(images), window.oh, window.ow, kernels.shape[3])
    y = np.zeros(shape, np.result_type(images, kernels))
    for tap, outputs, pixels in _taps(window):
        y[outputs] += images[pixels] @ kernels[tap]
    return y


def conv2d_grad_images(g, kernels, window):
    """Adjoint of `conv2d` in the images: (n, oh, ow, m), (kh, kw, c, m) -> (n, h, w, c)."""
    fits = _is_output(g, window) and kernels.ndim == 4
    fits = fits and kernels.shape[:2] + kernels.shape[3:] == (window.kh, window.kw, g.shape[3])
    _need(fits, "conv2d_grad_images", g, kernels)
    shape = (len(g), window.h, window.w, kernels.shape[2])
    images = np.zeros(shape, np.result_type(g, kernels))
    for tap, outputs, pixels in _taps(window):
        images[pixels] += g[outputs] @ kernels[tap].T
    return images


def conv2d_grad_kernels(g, images, window):
    """Adjoint of `conv2d` in the kernels: (n, oh, ow, m), (n, h, w, c) -> (kh, kw, c, m)."""
    fits = _is_output(g, window) and _is_image(images, window) and len(g) == len(images)
    _need(fits, "conv2d_grad_kernels", g, images)
    shape = (window.kh, window.kw, images.shape[3], g.shape[3])
    kernels = np.zeros(shape, np.result_type(g, images))
    for tap, outputs, pixels in _taps(window):
        kernels[tap] = np.tensordot(images[pixels], g[outputs], axes=([0, 1, 2], [0, 1, 2]))
    return kernels


def patches(images, window):
    """im2col: the pixels under every window, zero where padded: -> (n, oh, ow, kh, kw, c)."""
    _need(_is_image(images, window), "patches", images)
    n, c = len(images), images.shape[3]
    y = np.zeros((n, window.oh, window.ow, window.kh, window.kw, c), images.dtype)
    for (ky, kx), outputs, pixels in _taps(window):
        y[(*outputs, ky, kx)] = images[pixels]
    return y


def patches_sum(patches, window):
    """col2im, the adjoint of `patches`: (n, oh, ow, kh, kw, c) summed into (n, h, w, c)."""
    middle = (window.oh, window.ow, window.kh, window.kw)
    _need(patches.ndim == 6 and patches.shape[1:5] == middle, "patches_sum", patches)
    images = np.zeros((len(patches), window.h, window.w, patches.shape[5]), patches.dtype)
    for (ky, kx), outputs, pixels in _taps(window):
        images[pixels] += patches[(*outputs, ky, kx)]
    return images


def maxpool2d(images, window):
    """Largest pixel under each window, and where it was.

    Returns values (n, oh, ow, c) and indices of the same shape: the cell ``ky * kw + kx`` of the
    first maximum, uint8 for windows of up to 256 cells and int64 beyond. Padding is never the
    maximum; a NaN under the window is (as in `numpy.argmax`).
    """
    _need(_is_image(images, window), "maxpool2d", images)
    shape = (len(images), window.oh, window.ow, images.shape[3])
    values = np.zeros(shape, images.dtype)
    indices = np.zeros(shape, np.uint8 if window.kh * window.kw <= 256 else np.int64)
    seen = np.zeros(shape, bool)
    for (ky, kx), outputs, pixels in _taps(window):
        x, best = images[pixels], values[outputs]
        better = ~seen[outputs] | (x > best) | ((x != x) & (best == best))
        values[outputs] = np.where(better, x, best)
        indices[outputs][better] = ky * window.kw + kx
        seen[outputs] = True
    return values, indices


def _check_indices(indices, window, name):
    """Each index must name a cell that lies on the image, seen from its own output."""
    inside = np.zeros(indices.shape, bool)
    for (ky, kx), outputs, _ in _taps(window):
        inside[outputs] |= indices[outputs] == ky * window.kw + kx
    if not inside.all():
        raise IndexError(f"{name}: an index names no cell of its window")


def maxpool2d_gather(images, indices, window):
    """The pixels at the `indices` of `maxpool2d`: (n, h, w, c) -> (n, oh, ow, c)."""
    fits = _is_image(images, window) and _is_output(indices, window)
    fits = fits and (len(images), images.shape[3]) == (len(indices), indices.shape[3])
    _need(fits, "maxpool2d_gather", images, indices)
    _check_indices(indices, window, "maxpool2d_gather")
    y = np.zeros(indices.shape, images.dtype)
    for (ky, kx), outputs, pixels in _taps(window):
        here = indices[outputs] == ky * window.kw + kx
        y[outputs] = np.where(here, images[pixels], y[outputs])
    return y


def maxpool2d_scatter(g, indices, window):
    """Adjoint of `maxpool2d_gather`: each g added to the pixel it came from, -> (n, h, w, c)."""
    fits = _is_output(g, window) and g.shape == indices.shape
    _need(fits, "maxpool2d_scatter", g, indices)
    _check_indices(indices, window, "maxpool2d_scatter")
    images = np.zeros((len(g), window.h, window.w, g.shape[3]), g.dtype)
    for (ky, kx), outputs, pixels in _taps(window):
        here = indices[outputs] == ky * window.kw + kx
        images[pixels] += np.where(here, g[outputs], 0)
    return images


_SCALED = 128  # in a code: leaky_relu scaled the largest, since it was not above 0


def _need_pooling(window, pool, name):
    if (pool.h, pool.w) != (window.oh, window.ow):
        raise ValueError(f"{name}: {pool!r} does not go over the outputs of {window!r}")
    if pool.kh > pool.sy or pool.kw > pool.sx:
        raise ValueError(f"{name}: windows of {pool!r} overlap")
    if pool.kh * pool.kw > _SCALED:
        raise ValueError(f"{name}: {pool!r} has more than {_SCALED} cells")


def conv2d_maxpool2d(images, kernels, window, pool, alpha=1.0):
    """leaky_relu(maxpool2d(conv2d(images, kernels))) -> values and codes, two (n, ph, pw, m).

    A code is the index of `maxpool2d`, plus 128 where the largest is not above 0 (or NaN) and
    leaky_relu scales it by `alpha`. Windows of `pool` must not overlap, nor have more than 128
    cells.
    """
    _need_pooling(window, pool, "conv2d_maxpool2d")
    largest, indices = maxpool2d(conv2d(images, kernels, window), pool)
    return leaky_relu(largest, alpha), indices + np.where(largest > 0, 0, _SCALED).astype(np.uint8)


def _unpool(g, codes, pool, alpha, name):
    """The gradient in the outputs of the convolution."""
    _need(_is_output(g, pool) and g.shape == codes.shape, name, g, codes)
    slope = np.where(codes < _SCALED, 1.0, alpha).astype(g.dtype)
    marks = np.where(codes < _SCALED, 0, _SCALED).astype(codes.dtype)
    return maxpool2d_scatter(g * slope, codes ^ marks, pool)


def conv2d_maxpool2d_grad_images(g, codes, kernels, window, pool, alpha=1.0):
    """Adjoint of `conv2d_maxpool2d` in the images: g and codes (n, ph, pw, m) -> (n, h, w, c)."""
    _need_pooling(window, pool, "conv2d_maxpool2d_grad_images")
    g = _unpool(g, codes, pool, alpha, "conv2d_maxpool2d_grad_images")
    return conv2d_grad_images(g, kernels, window)


def conv2d_maxpool2d_grad_kernels(g, codes, images, window, pool, alpha=1.0):
    """Adjoint of `conv2d_maxpool2d` in the kernels: g, codes (n, ph, pw, m) -> (kh, kw, c, m)."""
    _need_pooling(window, pool, "conv2d_maxpool2d_grad_kernels")
    g = _unpool(g, codes, pool, alpha, "conv2d_maxpool2d_grad_kernels")
    return conv2d_grad_kernels(g, images, window)


def _averaging(dtype):
    """The dtypes to add in and to return: as np.mean, which adds float16 in float32."""
    dtype = dtype.newbyteorder("=") if dtype.kind == "f" else np.dtype(np.float64)
    return np.result_type(dtype, np.float32), dtype


def _cells(window, dtype):
    """How many cells of each window lie on the image: (1, oh, ow, 1)."""
    count = np.zeros((1, window.oh, window.ow, 1), dtype)
    for _, outputs, _ in _taps(window):
        count[outputs] += 1
    return count


def avgpool2d(images, window):
    """Mean of the pixels under each window; padding does not count: -> (n, oh, ow, c)."""
    _need(_is_image(images, window), "avgpool2d", images)
    wide, dtype = _averaging(images.dtype)
    y = np.zeros((len(images), window.oh, window.ow, images.shape[3]), wide)
    for _, outputs, pixels in _taps(window):
        y[outputs] += images[pixels]
    return (y / _cells(window, wide)).astype(dtype, copy=False)


def avgpool2d_grad_images(g, window):
    """Adjoint of `avgpool2d`: each g spread evenly over its window: -> (n, h, w, c)."""
    _need(_is_output(g, window), "avgpool2d_grad_images", g)
    wide, dtype = _averaging(g.dtype)
    share = g / _cells(window, wide)
    images = np.zeros((len(g), window.h, window.w, g.shape[3]), wide)
    for _, outputs, pixels in _taps(window):
        images[pixels] += share[outputs]
    return images.astype(dtype, copy=False)


# ------------------------------------------------------------------------------ sums and products


def sum_to(a, shape):
    """Sum `a` down to `shape`, which must broadcast to `a.shape`: the adjoint of `broadcast_to`."""
    shape = tuple(shape)
    added = a.ndim - len(shape)
    own = (1,) * added + shape
    if added < 0 or any(s not in (1, size) for s, size in zip(own, a.shape)):
        raise ValueError(f"sum_to: shape {shape} does not broadcast to {a.shape}")
    axes = tuple(i for i, (s, size) in enumerate(zip(own, a.shape)) if s == 1 and size != 1)
    dtype = a.dtype.newbyteorder("=")
    return np.sum(a, axis=axes, keepdims=True, dtype=dtype).reshape(shape)


def broadcast_to(a, shape):
    """`a` repeated to `shape`, as a new array."""
    return np.broadcast_to(a, shape).copy()


def add(a, b):
    """a + b, broadcast."""
    return np.add(a, b)


def sub(a, b):
    """a - b, broadcast."""
    return np.subtract(a, b)


def mul(a, b):
    """a * b, broadcast."""
    return np.multiply(a, b)


def div(a, b):
    """a / b, broadcast."""
    return np.true_divide(a, b)


def matmul(a, b, bias=None):
    """Matrix product as `numpy.matmul`, batches broadcast: (..., i, k) @ (..., k, j) + (j,)."""
    if bias is not None and (b.ndim < 2 or bias.shape != b.shape[-1:]):
        raise ValueError(f"matmul: a bias of shape {bias.shape} does not fit columns of {b.shape}")
    y = np.asarray(np.matmul(a, b))
    return y if bias is None else y + bias


# ------------------------------------------------------------------------ activations and losses


def leaky_relu(a, alpha=0.02):
    """`a` where a > 0, else alpha * a."""
    return np.where(a > 0, a, a * a.dtype.type(alpha))


def leaky_relu_grad_a(g, a, alpha=0.02):
    """Adjoint of `leaky_relu` at `a`: g where a > 0, else alpha * g."""
    _need(g.shape == a.shape, "leaky_relu_grad_a", g, a)
    return np.where(a > 0, g, g * g.dtype.type(alpha))


def _need_axis(a, axis, name):
    if not -a.ndim <= axis < a.ndim or not a.shape[axis]:
        raise ValueError(f"{name}: there is nothing along axis {axis} of shape {a.shape}")


def softmax(a, axis=-1):
    """exp(a) / sum(exp(a)) along one `axis`, shifted by each row's own maximum."""
    _need_axis(a, axis, "softmax")
    e = np.exp(a - np.max(a, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


def log_softmax(a, axis=-1):
    """log(softmax(a)) along one `axis`, without taking the log of an underflowed number."""
    _need_axis(a, axis, "log_softmax")
    shifted = a - np.max(a, axis=axis, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def softmax_grad_a(g, y, axis=-1):
    """Adjoint of `softmax` where it gave `y`: y * (g - sum(g * y)) along one `axis`."""
    _need(g.shape == y.shape, "softmax_grad_a", g, y)
    _need_axis(y, axis, "softmax_grad_a")
    return y * (g - np.sum(g * y, axis=axis, keepdims=True))


def log_softmax_grad_a(g, y, axis=-1):
    """Adjoint of `log_softmax` where it gave `y`: g - exp(y) * sum(g) along one `axis`."""
    _need(g.shape == y.shape, "log_softmax_grad_a", g, y)
    _need_axis(y, axis, "log_softmax_grad_a")
    return g - np.exp(y) * np.sum(g, axis=axis, keepdims=True)


def _check_labels(logits, labels, name):
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"{name}: logits must be (n, classes) and labels (n,), "
            f"got {logits.shape} and {labels.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name}: labels must be integers, got {labels.dtype}")
    if labels.size and not (0 <= labels.min() and labels.max() < logits.shape[1]):
        raise IndexError(f"{name}: labels must be 0 to {logits.shape[1] - 1}")


def softmax_cross_entropy(logits, labels):
    """-log(softmax(logits))[i, labels[i]]: (n, classes) logits, (n,) integers -> (n,) losses."""
    _check_labels(logits, labels, "softmax_cross_entropy")
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def softmax_cross_entropy_grad_logits(g, logits, labels):
    """Adjoint of `softmax_cross_entropy`: g (n,) times softmax(logits) - onehot(labels)."""
    _check_labels(logits, labels, "softmax_cross_entropy_grad_logits")
    _need(g.shape == labels.shape, "softmax_cross_entropy_grad_logits", g, labels)
    p = softmax(logits)
    p[np.arange(len(labels)), labels] -= 1
    return p * g[:, None]


# ------------------------------------------------------------------------------ indexing and steps


def add_at(a, indices, b):
    """A copy of `a` with `b` added at a[indices], repeated indices adding up (`numpy.add.at`).

    The compiled kernel takes one integer array that indexes the first axis; everything else that
    NumPy accepts as an index comes here.
    """
    _check_unsigned(a, indices, "add_at")
    y = a.copy()
    np.add.at(y, indices, b)
    return y


def _check_unsigned(a, indices, name):
    """NumPy takes an index of 2**64 - 1 for -1; here it is out of range."""
    if isinstance(indices, np.ndarray) and indices.dtype.kind == "u" and indices.size:
        if not a.ndim or indices.max() >= len(a):
            raise IndexError(f"{name}: index {indices.max()} is out of range for {a.shape}")


def take(a, indices):
    """Rows ``a[indices]`` for a 1-D array of integers: (rows, ...), (n,) -> (n, ...)."""
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or a.ndim < 1:
        raise ValueError(
            f"take: needs rows and a 1-D integer array, got {a.shape} and "
            f"{indices.dtype}{indices.shape}"
        )
    _check_unsigned(a, indices, "take")
    return a[indices]


def _check_adam_step(parameters, gradients, means, variances, steps):
    """Refuse what `adam_step` cannot do, before it has changed anything."""
    lists = (parameters, gradients, means, variances, steps)
    if len({len(one) for one in lists}) != 1:
        raise ValueError(f"adam_step: lists of different lengths: {[len(one) for one in lists]}")
    for arrays in zip(*lists[:4]):
        for a in arrays:
            if not (isinstance(a, np.ndarray) and a.dtype.kind == "f"):
                raise TypeError(f"adam_step: expected floating ndarrays, got {arrays!r}")
            if a.shape != arrays[0].shape:
                raise ValueError(f"adam_step: shapes differ: {[a.shape for a in arrays]}")
        if not (arrays[2].flags.writeable and arrays[3].flags.writeable):
            raise ValueError("adam_step: the running moments are updated in place: not writeable")
    for t in steps:
        if not isinstance(t, (int, np.integer)) or not 1 <= t < 2**63:
            raise ValueError(f"adam_step: steps are integers from 1, got {t!r}")


def _decayed(mean, beta, more):
    """beta * mean + more, in the dtype of `mean`.

    The float32 nearest to 0.999 is too large by 1.3e-5 of 1 - 0.999, and so would a mean of as many
    numbers be. Hence beta is a number of 11 bits, just below it, and the rest. With more bits, the
    first product could be rounded the same way in every step.
    """
    short = max(0.0, float(np.ceil(2048 * beta) - 1) / 2048)
    return short * mean + ((beta - short) * mean + more)


def adam_step(parameters, gradients, means, variances, steps, alpha, beta1, beta2, eps):
    """One step of Adam for lists of arrays (Kingma & Ba, arXiv:1412.6980, Algorithm 1).

    `steps[i]` counts from 1. Returns the list of new parameters; `means` and `variances` (the
    running moments m and v) are the optimiser's own and are **updated in place**.
    """
    _check_adam_step(parameters, gradients, means, variances, steps)
    new = []
    for p, g, m, v, t in zip(parameters, gradients, means, variances, steps):
        m[...] = _decayed(m, beta1, (1 - beta1) * g)
        v[...] = _decayed(v, beta2, (1 - beta2) * np.square(g))
        step = alpha / (1 - beta1**t)
        y = p - step * m / (np.sqrt(v / (1 - beta2**t)) + eps)
        new.append(np.asarray(y, p.dtype))
    return new
