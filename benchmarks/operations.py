"""Requests to a worker (`smallpebble/cli/peers.py`) to time single operations.

It runs in the interpreter of any library and imports nothing but that library, NumPy and the
standard library. `CASES` says what a case consists of; every library has a method for each kind
that it can do, which returns for each part of the work ("forward", "grad images", ...) one or
several ways to do it. All are tried, and the fastest is timed::

    {"do": "prepare", "case": {"kind": "matmul", "a": [2, 3], "b": [3, 4]}, "dtype": "float32"}
        -> {"parts": {"forward": {"seconds": 1e-6, "sum": ..., ...}, ...}}
    {"do": "sample", "part": "forward", "n": 1000}  -> {"seconds": 0.001, "interruptions": 0}

Forward, libraries record nothing that a gradient would need, beyond what the operation makes
anyway. A gradient is timed without the forward pass. SmallPebble's forward is its public operation
on Variables, and its gradients are the rules that `get_gradients` would run, called with an array.
PyTorch's gradients are its backward operations, JAX's are jitted functions of what `jax.vjp` gives
(XLA drops the forward part where the gradient does not need it), TensorFlow's the gradient
operations. PyTorch's images are tried channels_last and contiguous, TensorFlow's operations called
one by one and within a tf.function; converting a layout beforehand is not timed.
"""

import contextlib
import math
import resource
import time
import zlib

import numpy as np

SLOPE = 0.02
ALPHA, BETA1, BETA2, EPS = 0.001, 0.9, 0.999, 1e-8
TRIAL = 0.005  # seconds for which one way is tried, at least three calls
FORWARD = "forward"


# ---- what all libraries are given ----


def padding_of(case):
    """((top, bottom), (left, right)), and the output's height and width, as TensorFlow has them."""
    (kh, kw), (sy, sx) = case["window"], case["strides"]
    both, sizes = [], []
    for size, k, stride in zip(case["images"][1:3], (kh, kw), (sy, sx)):
        if case["padding"] == "VALID":
            both.append((0, 0))
            sizes.append((size - k) // stride + 1)
        else:
            n = -(-size // stride)
            total = max((n - 1) * stride + k - size, 0)
            both.append((total // 2, total - total // 2))
            sizes.append(n)
    return both, sizes


def _conv2d(case):
    n, _, _, c = case["images"]
    m = case["n_kernels"]
    return {
        "images": case["images"],
        "kernels": (*case["window"], c, m),
        "g": (n, *padding_of(case)[1], m),
    }


def _pool(case):
    n, _, _, c = case["images"]
    return {"images": case["images"], "g": (n, *padding_of(case)[1], c)}


def _matmul(case):
    a, b = case["a"], case["b"]
    batch = a[:-2] if len(a) >= len(b) else b[:-2]
    return {"a": a, "b": b, "g": (*batch, a[-2], b[-1])}


def _same(case):
    return {"a": case["a"], "g": case["a"]}


# Shapes of the arrays of each kind; `g` is the gradient that comes in.
CASES = {
    "conv2d": _conv2d,
    "maxpool2d": _pool,
    "avgpool2d": _pool,
    "matmul": _matmul,
    "sum_to": lambda case: {"a": case["a"], "g": case["to"]},
    "add": lambda case: {"a": case["a"], "b": case["b"], "g": case["a"]},
    "leaky_relu": _same,
    "softmax": _same,
    "log_softmax": _same,
    "cross_entropy": lambda case: {"a": case["a"]},
    "adam": lambda case: {f"{k}{i}": s for k in "pg" for i, s in enumerate(case["shapes"])},
    "chain": lambda case: {"a": case["a"], "b": case["a"], "c": case["a"]},
    "step": lambda case: {
        "images": case["images"],
        "kernels": (3, 3, case["images"][3], case["n_kernels"]),
    },
}


def arrays_of(case, dtype):
    """Normally distributed numbers, the same for everybody; `labels` as well where needed."""
    rng = np.random.default_rng(zlib.crc32(repr(sorted(case.items())).encode()))
    arrays = {}
    for name, shape in CASES[case["kind"]](case).items():
        arrays[name] = rng.standard_normal(tuple(shape), np.float32).astype(dtype)
    if case["kind"] == "cross_entropy":
        n, classes = case["a"]
        arrays["labels"] = rng.integers(0, classes, n)
    if case["kind"] == "chain":
        # b * exp(-a) + c stays close to where its slope is -1: nothing grows, nothing dies out.
        arrays["c"] = arrays["c"] / 100 + arrays["c"].dtype.type(0.5)
        arrays["b"] = np.exp(1 + arrays["c"])
        arrays["a"] = 1 + arrays["c"] + arrays["a"] / 100
    return arrays


def broadcast_axes(shape, to):
    """The axes along which `shape` is summed to become `to`."""
    added = len(shape) - len(to)
    own = (1,) * added + tuple(to)
    return tuple(i for i, (s, size) in enumerate(zip(own, shape)) if s == 1 and size != 1)


def digest(array):
    """A few numbers that two equal arrays have in common."""
    flat = np.asarray(array, np.float64).ravel()
    weights = np.sin(1 + np.arange(997.0))
    whole = flat.size // 997 * 997
    total = flat[:whole].reshape(-1, 997).sum(0) @ weights
    total += flat[whole:] @ weights[: flat.size - whole]
    return {
        "shape": list(np.shape(array)),
        "sum": float(total),
        # Not by np.linalg.norm: BLAS would leave threads spinning.
        "norm": math.sqrt(np.sum(np.square(flat))),
        "largest": float(np.max(np.abs(flat))) if flat.size else 0.0,
    }


# ---- libraries ----


class SmallPebble:
    """Public operations on Variables; their rules on arrays."""

    def __init__(self, library):
        self.sp = library.sp

    def quiet(self):
        return self.sp.no_grad()

    def numpy(self, result):
        return result

    def rules(self, result, g, **variables):
        """For each of the `variables`, what `get_gradients` would call for it."""
        functions = {id(variable): function for variable, function in result._node.pairs}

        def bound(function):
            return [("rule", lambda: function(g))]

        return {f"grad {name}": bound(functions[id(v)]) for name, v in variables.items()}

    def parts(self, operation, g, *fixed, **arrays):
        """Forward and the gradient in each of the `arrays`."""
        variables = {name: self.sp.Variable(array) for name, array in arrays.items()}
        call = lambda: operation(*variables.values(), *fixed)  # noqa: E731
        forward = [("operation", lambda: call().array)]
        return {FORWARD: forward, **self.rules(call(), g, **variables)}

    def conv2d(self, case, images, kernels, g):
        fixed = case["padding"], case["strides"]
        return self.parts(self.sp.conv2d, g, *fixed, images=images, kernels=kernels)

    def maxpool2d(self, case, images, g):
        operation = getattr(self.sp, case["kind"])
        fixed = *case["window"], case["padding"], case["strides"]
        return self.parts(operation, g, *fixed, images=images)

    avgpool2d = maxpool2d

    def matmul(self, case, a, b, g):
        return self.parts(self.sp.matmul, g, a=a, b=b)

    def sum_to(self, case, a, g):
        return self.parts(self.sp.sum_to, g, tuple(case["to"]), a=a)

    def add(self, case, a, b, g):
        parts = self.parts(self.sp.add, g, a=a, b=b)
        del parts["grad a"]  # it is g
        return parts

    def leaky_relu(self, case, a, g):
        return self.parts(self.sp.leaky_relu, g, SLOPE, a=a)

    def softmax(self, case, a, g):
        return self.parts(getattr(self.sp, case["kind"]), g, a=a)

    log_softmax = softmax

    def cross_entropy(self, case, a, labels):
        sp, variable = self.sp, self.sp.Variable(a)

        def both():
            return sp.get_gradients(sp.softmax_cross_entropy(variable, labels))[variable]

        return {
            FORWARD: [("operation", lambda: sp.softmax_cross_entropy(variable, labels).array)],
            "both": [("get_gradients", both)],
        }

    def adam(self, case, **arrays):
        ps, gs = halves(arrays)
        variables = [self.sp.Variable(p) for p in ps]
        gradients = dict(zip(variables, gs))
        adam = self.sp.Adam(ALPHA, BETA1, BETA2, EPS)

        def step():
            adam.training_step(variables, gradients)
            return [variable.array for variable in variables]

        return {"step": [("Adam", step)]}

    def chain(self, case, a, b, c):
        sp = self.sp
        a, shared = sp.Variable(a), (b, c)
        if case["shared"]:
            b, c = shared = sp.Variable(b), sp.Variable(c)

        def both():
            h = a
            for _ in range(case["operations"] // 4):
                h = sp.add(sp.mul(sp.exp(sp.neg(h)), b), c)
            gradients = sp.get_gradients(sp.sum(h))
            return [gradients[v] for v in ((a, *shared) if case["shared"] else (a,))]

        return {"both": [("get_gradients", both)]}

    def step(self, case, images, kernels):
        """A convolution, its activation and a pooling, and the gradient in the kernels."""
        sp, images, kernels = self.sp, self.sp.Variable(images), self.sp.Variable(kernels)

        def both():
            h = sp.leaky_relu(sp.conv2d(images, kernels, "VALID"))
            return sp.get_gradients(sp.sum(sp.maxpool2d(h, 2, 2, strides=(2, 2))))[kernels]

        return {"both": [("get_gradients", both)]}


def halves(arrays):
    """Parameters and gradients."""
    n = len(arrays) // 2
    return [arrays[f"p{i}"] for i in range(n)], [arrays[f"g{i}"] for i in range(n)]


class Torch:
    """Its operations; gradients by the operations that its own backward pass calls."""

    def __init__(self, library):
        self.torch = library.torch
        self.flipped = ()

    def quiet(self):
        return self.torch.no_grad()

    def numpy(self, result):
        array = result.detach()
        if array.ndim == 4 and self.flipped:
            kernels = getattr(result, "is_kernels", False)
            array = array.permute(2, 3, 1, 0) if kernels else array.permute(0, 2, 3, 1)
            array = array.flip((0, 1) if kernels else (1, 2)) if self.flipped == "yes" else array
        return array.numpy()

    def layouts(self, case, arrays):
        """(name, padding, arrays as PyTorch has them) for both layouts.

        SAME may pad one pixel more behind than in front, which PyTorch does not. Seen from the
        other end it is one more in front; PyTorch, told to pad both ends alike, then leaves out
        the superfluous pixels behind. So images and kernels are flipped beforehand.
        """
        torch = self.torch
        both, sizes = padding_of(case)
        amounts = [max(pair) for pair in both]
        uneven = any(before != after for before, after in both)
        self.flipped = "yes" if uneven else "no"
        spans = zip(case["images"][1:3], amounts, case["window"], case["strides"])
        assert sizes == [(size + 2 * p - k) // stride + 1 for size, p, k, stride in spans]
        formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
        for name, layout in formats.items():
            made = {}
            for key, array in arrays.items():
                axes, order = ((0, 1), (3, 2, 0, 1)) if key == "kernels" else ((1, 2), (0, 3, 1, 2))
                array = np.flip(array, axes) if uneven else array
                tensor = torch.from_numpy(np.ascontiguousarray(array)).permute(order)
                made[key] = tensor.contiguous(memory_format=layout)
            yield name, amounts, made

    def conv2d(self, case, **arrays):
        torch, strides = self.torch, case["strides"]
        backward = torch.ops.aten.convolution_backward
        parts = {FORWARD: [], "grad images": [], "grad kernels": []}
        for name, padding, made in self.layouts(case, arrays):
            x, w, g = (made[key] for key in ("images", "kernels", "g"))

            def forward(x=x, w=w, padding=padding):
                return torch.nn.functional.conv2d(x, w, None, strides, padding)

            def gradient(mask, x=x, w=w, g=g, padding=padding):
                rest = None, strides, padding, (1, 1), False, (0, 0), 1, mask
                return backward(g, x, w, *rest)

            def grad_images(gradient=gradient):
                return gradient((True, False, False))[0]

            def grad_kernels(gradient=gradient):
                result = gradient((False, True, False))[1]
                result.is_kernels = True
                return result

            for key, function in zip(parts, (forward, grad_images, grad_kernels)):
                parts[key].append((name, function))
        return parts

    def maxpool2d(self, case, **arrays):
        torch, window, strides = self.torch, case["window"], case["strides"]
        F, aten = torch.nn.functional, torch.ops.aten
        parts = {FORWARD: [], "grad images": []}
        for name, padding, made in self.layouts(case, arrays):
            x, g = made["images"], made["g"]
            if case["kind"] == "maxpool2d":
                _, places = F.max_pool2d(x, window, strides, padding, return_indices=True)

                def forward(x=x, padding=padding):
                    return F.max_pool2d(x, window, strides, padding)

                def gradient(x=x, g=g, padding=padding, places=places):
                    return aten.max_pool2d_with_indices_backward(
                        g, x, window, strides, padding, (1, 1), False, places
                    )
            else:

                def forward(x=x, padding=padding):
                    return F.avg_pool2d(x, window, strides, padding, count_include_pad=False)

                def gradient(x=x, g=g, padding=padding):
                    return aten.avg_pool2d_backward(
                        g, x, window, strides, padding, False, False, None
                    )

            parts[FORWARD].append((name, forward))
            parts["grad images"].append((name, gradient))
        return parts

    avgpool2d = maxpool2d

    def one_way(self, how="operation", **functions):
        self.flipped = ""
        return {key.replace("_", " "): [(how, function)] for key, function in functions.items()}

    def tensors(self, *arrays):
        return [self.torch.from_numpy(array) for array in arrays]

    def matmul(self, case, a, b, g):
        torch = self.torch
        a, b, g = self.tensors(a, b, g)
        if a.ndim > b.ndim:  # b is shared by the batch
            rows, from_rows = a.reshape(-1, a.shape[-1]), g.reshape(-1, g.shape[-1])
        else:
            rows, from_rows = a, g
        return self.one_way(
            forward=lambda: torch.matmul(a, b),
            grad_a=lambda: torch.matmul(g, b.mT),
            grad_b=lambda: torch.matmul(rows.mT, from_rows),
        )

    def sum_to(self, case, a, g):
        a, g = self.tensors(a, g)
        axes, shape = broadcast_axes(case["a"], case["to"]), tuple(case["a"])
        to = tuple(case["to"])
        return self.one_way(
            forward=lambda: a.sum(axes, keepdim=True).reshape(to),
            grad_a=lambda: g.expand(shape).clone(memory_format=self.torch.contiguous_format),
        )

    def add(self, case, a, b, g):
        a, b, g = self.tensors(a, b, g)
        axes, shape = broadcast_axes(case["a"], case["b"]), tuple(case["b"])
        return self.one_way(
            forward=lambda: a + b, grad_b=lambda: g.sum(axes, keepdim=True).reshape(shape)
        )

    def leaky_relu(self, case, a, g):
        a, g = self.tensors(a, g)
        backward = self.torch.ops.aten.leaky_relu_backward
        F = self.torch.nn.functional
        return self.one_way(
            forward=lambda: F.leaky_relu(a, SLOPE), grad_a=lambda: backward(g, a, SLOPE, False)
        )

    def softmax(self, case, a, g):
        torch = self.torch
        a, g = self.tensors(a, g)
        forward = getattr(torch, case["kind"])
        backward = getattr(torch.ops.aten, f"_{case['kind']}_backward_data")
        y = forward(a, -1)
        return self.one_way(
            forward=lambda: forward(a, -1), grad_a=lambda: backward(g, y, -1, a.dtype)
        )

    log_softmax = softmax

    def cross_entropy(self, case, a, labels):
        torch = self.torch
        a, labels = self.tensors(a, labels)
        recorded = a.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy

        def both():
            value = loss(recorded, labels, reduction="sum")
            return torch.autograd.grad(value, recorded)[0]

        return self.one_way(forward=lambda: loss(a, labels, reduction="sum"), both=both)

    def adam(self, case, **arrays):
        torch = self.torch
        ps, gs = (self.tensors(*some) for some in halves(arrays))
        ps = [p.clone().requires_grad_() for p in ps]
        for p, g in zip(ps, gs):
            p.grad = g
        adam = torch.optim.Adam(ps, lr=ALPHA, betas=(BETA1, BETA2), eps=EPS, fused=True)

        def step():
            adam.step()
            return ps

        return self.one_way("fused Adam", step=step)

    def chain(self, case, a, b, c):
        torch = self.torch
        a, b, c = self.tensors(a, b, c)
        wanted = [t.requires_grad_() for t in ((a, b, c) if case["shared"] else (a,))]

        def both():
            h = a
            for _ in range(case["operations"] // 4):
                h = torch.exp(-h) * b + c
            return torch.autograd.grad(h.sum(), wanted)

        return self.one_way("autograd.grad", both=both)


class Jax:
    """Jitted functions, each waited for."""

    def __init__(self, library):
        self.jax = library.jax

    def quiet(self):
        return contextlib.nullcontext()

    def numpy(self, result):
        return np.asarray(result)

    def jitted(self, function, *arguments):
        compiled, wait = self.jax.jit(function), self.jax.block_until_ready
        return [("jit", lambda: wait(compiled(*arguments)))]

    def parts(self, function, g, **arrays):
        """Forward and the gradient in each of the `arrays`; g, and what else is needed, go in."""
        jnp = self.jax.numpy
        names, values = list(arrays), [jnp.asarray(array) for array in arrays.values()]
        g = jnp.asarray(g)
        found = {FORWARD: self.jitted(function, *values)}

        def gradient(i):
            def pulled(g, *values):
                def of_one(value):
                    return function(*values[:i], value, *values[i + 1 :])

                return self.jax.vjp(of_one, values[i])[1](g)[0]

            return self.jitted(pulled, g, *values)

        return found | {f"grad {name}": gradient(i) for i, name in enumerate(names)}

    def conv2d(self, case, images, kernels, g):
        lax = self.jax.lax

        def convolve(x, w):
            layouts = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(
                x, w, case["strides"], case["padding"], dimension_numbers=layouts
            )

        return self.parts(convolve, g, images=images, kernels=kernels)

    def maxpool2d(self, case, images, g):
        lax, jnp = self.jax.lax, self.jax.numpy
        fixed = (1, *case["window"], 1), (1, *case["strides"], 1), case["padding"]
        if case["kind"] == "maxpool2d":

            def pool(x):
                return lax.reduce_window(x, -jnp.inf, lax.max, *fixed)
        else:
            ones = jnp.ones((1, *case["images"][1:3], 1), images.dtype)
            count = lax.reduce_window(ones, 0.0, lax.add, *fixed)

            def pool(x):
                return lax.reduce_window(x, 0.0, lax.add, *fixed) / count

        return self.parts(pool, g, images=images)

    avgpool2d = maxpool2d

    def matmul(self, case, a, b, g):
        return self.parts(self.jax.numpy.matmul, g, a=a, b=b)

    def sum_to(self, case, a, g):
        axes, shape = broadcast_axes(case["a"], case["to"]), tuple(case["to"])
        return self.parts(lambda a: a.sum(axes, keepdims=True).reshape(shape), g, a=a)

    def add(self, case, a, b, g):
        parts = self.parts(lambda a, b: a + b, g, a=a, b=b)
        del parts["grad a"]
        return parts

    def leaky_relu(self, case, a, g):
        return self.parts(lambda a: self.jax.nn.leaky_relu(a, SLOPE), g, a=a)

    def softmax(self, case, a, g):
        return self.parts(getattr(self.jax.nn, case["kind"]), g, a=a)

    log_softmax = softmax

    def cross_entropy(self, case, a, labels):
        jax, jnp = self.jax, self.jax.numpy

        def loss(a, labels):
            return -jnp.take_along_axis(jax.nn.log_softmax(a), labels[:, None], 1).sum()

        given = jnp.asarray(a), jnp.asarray(labels)
        return {
            FORWARD: self.jitted(loss, *given),
            "both": self.jitted(lambda *given: jax.value_and_grad(loss)(*given)[1], *given),
        }

    def adam(self, case, **arrays):
        jax, jnp = self.jax, self.jax.numpy
        ps, gs = ([jnp.array(one) for one in some] for some in halves(arrays))
        zeros = [[jnp.zeros_like(p) for p in ps] for _ in range(2)]
        state = [ps, *zeros, jnp.zeros((), ps[0].dtype)]

        def update(ps, ms, vs, t, gs):
            t = t + 1
            ms = [BETA1 * m + (1 - BETA1) * g for m, g in zip(ms, gs)]
            vs = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(vs, gs)]
            c1, c2 = 1 - BETA1**t, 1 - BETA2**t
            ps = [
                p - (ALPHA * (m / c1) / (jnp.sqrt(v / c2) + EPS)).astype(p.dtype)
                for p, m, v in zip(ps, ms, vs)
            ]
            return ps, ms, vs, t

        compiled = jax.jit(update, donate_argnums=(0, 1, 2, 3))

        def step():
            state[:] = jax.block_until_ready(compiled(*state, gs))
            return state[0]

        return {"step": [("jit", step)]}


class TensorFlow:
    """Raw operations, called one by one and within a tf.function."""

    def __init__(self, library):
        self.library = library
        self.tf = library.tf

    def quiet(self):
        return contextlib.nullcontext()

    def numpy(self, result):
        return result.numpy()

    def ways(self, function, *arrays):
        """`function` of the `arrays`, as tensors, and of what is made of them beforehand."""
        tensors = [self.tf.constant(array) for array in arrays]
        compiled = self.tf.function(function, autograph=False)
        return [
            ("eager", lambda: function(*tensors)),
            ("function", lambda: compiled(*tensors)),
        ]

    def conv2d(self, case, images, kernels, g):
        raw = self.tf.raw_ops
        fixed = {"strides": [1, *case["strides"], 1], "padding": case["padding"]}

        def forward(x, w):
            return raw.Conv2D(input=x, filter=w, **fixed)

        def grad_images(sizes, w, g):
            return raw.Conv2DBackpropInput(input_sizes=sizes, filter=w, out_backprop=g, **fixed)

        def grad_kernels(x, sizes, g):
            return raw.Conv2DBackpropFilter(input=x, filter_sizes=sizes, out_backprop=g, **fixed)

        return {
            FORWARD: self.ways(forward, images, kernels),
            "grad images": self.ways(grad_images, np.array(images.shape, np.int32), kernels, g),
            "grad kernels": self.ways(grad_kernels, images, np.array(kernels.shape, np.int32), g),
        }

    def maxpool2d(self, case, images, g):
        raw = self.tf.raw_ops
        fixed = {
            "ksize": [1, *case["window"], 1],
            "strides": [1, *case["strides"], 1],
            "padding": case["padding"],
        }
        if case["kind"] == "avgpool2d":
            sizes = np.array(images.shape, np.int32)
            return {
                FORWARD: self.ways(lambda x: raw.AvgPool(value=x, **fixed), images),
                "grad images": self.ways(
                    lambda s, g: raw.AvgPoolGrad(orig_input_shape=s, grad=g, **fixed), sizes, g
                ),
            }

        def gradient(x, y, g):
            return raw.MaxPoolGrad(orig_input=x, orig_output=y, grad=g, **fixed)

        y = raw.MaxPool(input=self.tf.constant(images), **fixed)
        return {
            FORWARD: self.ways(lambda x: raw.MaxPool(input=x, **fixed), images),
            "grad images": self.ways(gradient, images, y, g),
        }

    avgpool2d = maxpool2d

    def matmul(self, case, a, b, g):
        tf = self.tf
        rows, from_rows = a, g
        if a.ndim > b.ndim:  # b is shared by the batch
            rows, from_rows = a.reshape(-1, a.shape[-1]), g.reshape(-1, g.shape[-1])
        return {
            FORWARD: self.ways(tf.matmul, a, b),
            "grad a": self.ways(lambda g, b: tf.matmul(g, b, transpose_b=True), g, b),
            "grad b": self.ways(lambda a, g: tf.matmul(a, g, transpose_a=True), rows, from_rows),
        }

    def summing(self, shape, to):
        tf, axes = self.tf, list(broadcast_axes(shape, to))
        return lambda a: tf.reshape(tf.reduce_sum(a, axes, keepdims=True), to)

    def sum_to(self, case, a, g):
        tf, shape = self.tf, case["a"]
        return {
            FORWARD: self.ways(self.summing(shape, case["to"]), a),
            "grad a": self.ways(lambda g: tf.broadcast_to(g, shape), g),
        }

    def add(self, case, a, b, g):
        raw = self.tf.raw_ops
        return {
            FORWARD: self.ways(lambda a, b: raw.AddV2(x=a, y=b), a, b),
            "grad b": self.ways(self.summing(case["a"], case["b"]), g),
        }

    def leaky_relu(self, case, a, g):
        raw = self.tf.raw_ops
        return {
            FORWARD: self.ways(lambda a: raw.LeakyRelu(features=a, alpha=SLOPE), a),
            "grad a": self.ways(
                lambda g, a: raw.LeakyReluGrad(gradients=g, features=a, alpha=SLOPE), g, a
            ),
        }

    def softmax(self, case, a, g):
        tf = self.tf
        function = getattr(tf.nn, case["kind"])
        y = function(tf.constant(a))

        def of_softmax(g, y):
            return (g - tf.reduce_sum(g * y, -1, keepdims=True)) * y

        def of_log_softmax(g, y):
            return g - tf.exp(y) * tf.reduce_sum(g, -1, keepdims=True)

        gradient = of_softmax if case["kind"] == "softmax" else of_log_softmax
        return {FORWARD: self.ways(function, a), "grad a": self.ways(gradient, g, y)}

    log_softmax = softmax

    def cross_entropy(self, case, a, labels):
        tf = self.tf
        losses = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits

        def both(a, labels):
            found = losses(features=a, labels=labels)  # both at once
            return tf.reduce_sum(found.loss), found.backprop

        def gradient_of(way):
            return lambda: way()[1]

        return {
            FORWARD: self.ways(lambda *given: both(*given)[0], a, labels),
            "both": [(how, gradient_of(way)) for how, way in self.ways(both, a, labels)],
        }

    def adam(self, case, **arrays):
        tf = self.tf
        ps, gs = halves(arrays)
        dtype = ps[0].dtype

        def update():
            variables = [tf.Variable(p) for p in ps]
            ms, vs = ([tf.Variable(tf.zeros_like(p)) for p in ps] for _ in range(2))
            powers = [tf.Variable(tf.constant(beta, dtype)) for beta in (BETA1, BETA2)]
            gradients = [tf.constant(g) for g in gs]

            return variables, lambda: self.library.adam(variables, ms, vs, powers, gradients)

        def way(wrap):
            variables, step = update()
            step = wrap(step)

            def call():
                step()
                return variables

            return call

        return {
            "step": [
                ("eager", way(lambda step: step)),
                ("function", way(lambda step: self.tf.function(step, autograph=False))),
            ]
        }


class MyGrad:
    """MyGrad, for chains of small operations; its memory guard, which costs time, is off."""

    def __init__(self, library):
        self.mg = library.mg

    def quiet(self):
        return contextlib.nullcontext()

    def numpy(self, result):
        return result

    def chain(self, case, a, b, c):
        mg = self.mg
        a = mg.tensor(a)
        if case["shared"]:
            b, c = mg.tensor(b), mg.tensor(c)

        def both():
            h = a
            for _ in range(case["operations"] // 4):
                h = mg.exp(-h) * b + c
            h.sum().backward()
            return [t.grad for t in ((a, b, c) if case["shared"] else (a,))]

        return {"both": [("backward", both)]}


class MyGradLibrary:
    """MyGrad as `peers.py` wants a library."""

    def __init__(self, threads):
        import mygrad

        mygrad.turn_memory_guarding_off()
        self.mg, self.version = mygrad, mygrad.__version__


LIBRARIES = {"mygrad": MyGradLibrary}
OPERATIONS = {
    "smallpebble": SmallPebble,
    "torch": Torch,
    "jax": Jax,
    "tensorflow": TensorFlow,
    "mygrad": MyGrad,
}


# ---- requests ----


class Requests:
    """Prepares a case, and times its parts."""

    def __init__(self, name, library):
        self.operations = OPERATIONS[name](library)
        self.functions = {}

    def prepare(self, case, dtype):
        """Make the arrays; call everything, find the fastest way of each part."""
        self.functions.clear()  # the arrays of the last case go first
        make = getattr(self.operations, case["kind"])
        parts = {}
        for part, ways in make(case, **arrays_of(case, dtype)).items():
            found, refused = [], {}
            for how, function in ways:
                with self.quiet(part):
                    try:
                        # Taken down at once: the next call may change the result in place.
                        answer = digest(self._numpy(function()))
                        found.append((self._try(function), how, function, answer))
                    except Exception as error:  # not every way knows every shape
                        refused[how] = str(error)
                        if len(refused) == len(ways):
                            raise
            seconds, how, self.functions[part], answer = min(found, key=lambda one: one[0])
            parts[part] = {"seconds": seconds, "how": how, "refused": refused, **answer}
        return {"parts": parts}

    def quiet(self, part):
        return self.operations.quiet() if part == FORWARD else contextlib.nullcontext()

    def _numpy(self, result):
        """As one array, should there be several."""
        if isinstance(result, (list, tuple)):
            return np.concatenate([np.ravel(self.operations.numpy(one)) for one in result])
        return self.operations.numpy(result)

    def _try(self, function):
        """Seconds of a call: the shortest of a few, the first not counted."""
        function()
        times, ending = [], time.perf_counter() + TRIAL
        while len(times) < 3 or time.perf_counter() < ending:
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
        return min(times)

    def sample(self, part, n):
        """Seconds that `n` calls take, after one that is not counted."""
        function = self.functions[part]
        with self.quiet(part):
            function()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            started = time.perf_counter()
            for _ in range(n):
                function()
            seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        return {"seconds": seconds, "interruptions": after - before}
