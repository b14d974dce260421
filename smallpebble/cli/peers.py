"""A worker process: trains a README net with one library, in that library's interpreter.

Run by its path, so it imports nothing of this package; ``smallpebble`` in here is what its
interpreter finds, perhaps of another version. One request a line on stdin, one answer a line on
stdout, both JSON; arrays come in an npz file. Every net takes the same batches and initial
numbers::

    {"do": "load", "library": "torch", "threads": 2}       -> {"version": "2.13.0"}
    {"do": "net", "net": "readme_mlp", "file": "net.npz"}  -> {}
    {"do": "train", "first": 0, "n": 20}                   -> {"seconds": 0.04, "losses": [...]}
    {"do": "evaluate", "first": 0, "n": 20}                -> {"seconds": 0.01}
    {"do": "units", "first": 0, "n": 20}                   -> {"train": [0.002, ...], ...}
    {"do": "memory"}                                       -> {"now": 2e8, "peak": 3e8}

An argument names a file of Python with further requests: the public methods of its class `Requests`
(made with the name of the library, and the library), and further libraries in its dict `LIBRARIES`.
"""

import contextlib
import inspect
import json
import os
import runpy
import sys
import time

try:
    import resource
except ImportError:  # as on Windows
    resource = None  # type: ignore[assignment]

ALPHA, BETA1, BETA2, EPS = 0.001, 0.9, 0.999, 1e-8
SLOPE = 0.02


def limit_processors(threads):
    """For libraries that take as many threads as they see processors."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:threads])


def interruptions():
    """How often the system has taken a processor away from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def page_faults():
    """How often this process touched memory that the system then had to find, without a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


class SmallPebble:
    """SmallPebble: the nets of 3.0.5's README, built as it does, with given numbers."""

    def __init__(self, threads):
        import smallpebble

        self.sp = smallpebble
        from importlib.metadata import PackageNotFoundError, version

        try:
            self.version = getattr(smallpebble, "__version__", None) or version("smallpebble")
        except PackageNotFoundError:
            self.version = "of unknown version"
        self.details = {"file": smallpebble.__file__}
        if hasattr(smallpebble, "show_config"):
            self.details |= smallpebble.show_config(mode="dict")

    def net(self, name, parameters):
        sp = self.sp
        rest = iter(parameters)
        self.learnables = []

        def layer(make, *sizes):
            """A layer on top of `h` that computes in the dtype of its given parameters."""
            weights = next(rest)
            # 3.0.5 has no dtypes: there a layer computes in what it is given.
            typed = "dtype" in inspect.signature(make).parameters
            node = make(*sizes, **({"dtype": weights.dtype} if typed else {}))(h)
            for variable in node.arguments:
                if getattr(variable, "is_learnable", False):
                    variable.array = (next(rest) if variable.array.ndim == 1 else weights).copy()
                    self.learnables.append(variable)
            return node

        self.x, self.y = sp.Placeholder(), sp.Placeholder()
        h = self.x
        if name == "readme_mlp":
            h = layer(sp.linearlayer, 28 * 28, 100)
            h = sp.Lazy(sp.leaky_relu)(h)
            h = layer(sp.linearlayer, 100, 100)
            h = sp.Lazy(sp.leaky_relu)(h)
            h = layer(sp.linearlayer, 100, 10)
        else:
            for depth, n_kernels in ((3, 32), (32, 128), (128, 128)):
                h = layer(sp.convlayer, 3, 3, depth, n_kernels)
                h = sp.Lazy(sp.leaky_relu)(h)
                h = sp.Lazy(lambda a: sp.maxpool2d(a, 2, 2, strides=[2, 2]))(h)
            h = sp.Lazy(lambda a: sp.reshape(a, [-1, 3 * 3 * 128]))(h)
            h = layer(sp.linearlayer, 3 * 3 * 128, 10)
        self.scores = sp.Lazy(sp.softmax)(h)
        self.loss = sp.Lazy(sp.cross_entropy)(self.scores, self.y)
        self.adam = sp.Adam(ALPHA, BETA1, BETA2, EPS)

    def tensors(self, x, y):
        return x, y

    def train(self, x, y):
        self.x.assign_value(self.sp.Variable(x))
        self.y.assign_value(y)
        loss = self.loss.run()
        self.adam.training_step(self.learnables, self.sp.get_gradients(loss))
        return float(loss.array)

    def evaluate(self, x):
        self.x.assign_value(self.sp.Variable(x))
        # 3.0.5 records whether anybody asks for gradients or not.
        with getattr(self.sp, "no_grad", contextlib.nullcontext)():
            return self.scores.run().array.argmax(1)


class Torch:
    """PyTorch: channels_last, which its convolutions prefer, and its fused Adam."""

    def __init__(self, threads):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        self.version = torch.__version__

    def net(self, name, parameters):
        torch = self.torch
        self.convolutional = name == "readme_cnn"
        self.parameters = []
        for p in parameters:
            p = torch.from_numpy(p.copy())
            if p.ndim == 4:
                p = p.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            self.parameters.append(p.requires_grad_())
        self.adam = torch.optim.Adam(
            self.parameters, lr=ALPHA, betas=(BETA1, BETA2), eps=EPS, fused=True
        )

    def tensors(self, x, y):
        return self.torch.from_numpy(x), self.torch.from_numpy(y)

    def scores(self, h):
        F = self.torch.nn.functional
        rest = iter(self.parameters)
        if self.convolutional:
            h = h.permute(0, 3, 1, 2)  # a view: in memory it is channels_last already
            for _ in range(3):
                h = F.leaky_relu(F.conv2d(h, next(rest)), SLOPE)
                h = F.max_pool2d(h, 2, ceil_mode=True)
            h = h.permute(0, 2, 3, 1).reshape(-1, 3 * 3 * 128)
        else:
            for _ in range(2):
                weights, bias = next(rest), next(rest)
                h = F.leaky_relu(self.torch.addmm(bias, h, weights), SLOPE)
        weights, bias = rest
        return self.torch.addmm(bias, h, weights)

    def train(self, x, y):
        F = self.torch.nn.functional
        loss = F.cross_entropy(self.scores(x), y, reduction="sum")
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return float(loss.detach())

    def evaluate(self, x):
        with self.torch.inference_mode():
            return self.scores(x).argmax(1).numpy()


class Jax:
    """JAX: the whole step in one jitted function that gives its buffers back."""

    def __init__(self, threads):
        limit_processors(threads)
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax = jax
        self.version = jax.__version__

    def net(self, name, parameters):
        jax, jnp = self.jax, self.jax.numpy

        def scores(parameters, h):
            rest = iter(parameters)
            if name == "readme_cnn":
                for _ in range(3):
                    h = jax.lax.conv_general_dilated(
                        h, next(rest), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                    )
                    h = jnp.where(h > 0, h, SLOPE * h)
                    h = jax.lax.reduce_window(
                        h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
                    )
                h = h.reshape(-1, 3 * 3 * 128)
            else:
                for _ in range(2):
                    h = h @ next(rest) + next(rest)
                    h = jnp.where(h > 0, h, SLOPE * h)
            return h @ next(rest) + next(rest)

        def loss(parameters, x, y):
            logs = jax.nn.log_softmax(scores(parameters, x))
            return -jnp.take_along_axis(logs, y[:, None], 1).sum()

        def step(parameters, m, v, t, x, y):
            value, gradients = jax.value_and_grad(loss)(parameters, x, y)
            t = t + 1
            m = [BETA1 * m + (1 - BETA1) * g for m, g in zip(m, gradients)]
            v = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(v, gradients)]
            c1, c2 = 1 - BETA1**t, 1 - BETA2**t
            parameters = [
                p - (ALPHA * (m / c1) / (jnp.sqrt(v / c2) + EPS)).astype(p.dtype)
                for p, m, v in zip(parameters, m, v)
            ]
            return parameters, m, v, t, value

        self.parameters = [jnp.array(p) for p in parameters]
        self.m = [jnp.zeros_like(p) for p in self.parameters]
        self.v = [jnp.zeros_like(p) for p in self.parameters]
        self.t = jnp.zeros((), self.parameters[0].dtype)
        self.step = jax.jit(step, donate_argnums=(0, 1, 2, 3))
        self.predict = jax.jit(lambda parameters, x: scores(parameters, x).argmax(1))

    def tensors(self, x, y):
        return self.jax.numpy.asarray(x), self.jax.numpy.asarray(y)

    def train(self, x, y):
        self.parameters, self.m, self.v, self.t, loss = self.step(
            self.parameters, self.m, self.v, self.t, x, y
        )
        return float(loss)

    def evaluate(self, x):
        import numpy as np

        return np.asarray(self.predict(self.parameters, x))


class TensorFlow:
    """TensorFlow: the step in one tf.function, with its fused Adam operation."""

    def __init__(self, threads):
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        # As TensorFlow does by itself: the gradients of a convolution then run side by side.
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        self.tf = tf
        self.version = tf.__version__

    def adam(self, parameters, m, v, powers, gradients):
        """One step, by the fused operation; `powers` are those of beta1 and beta2, of the dtype."""
        tf, dtype = self.tf, powers[0].dtype
        # The operation adds epsilon to the root of v before v's start bias is taken out.
        epsilon = EPS * tf.sqrt(1 - powers[1])
        for p, m_, v_, g in zip(parameters, m, v, gradients):
            tf.raw_ops.ResourceApplyAdam(
                var=p.handle,
                m=m_.handle,
                v=v_.handle,
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=tf.constant(ALPHA, dtype),
                beta1=tf.constant(BETA1, dtype),
                beta2=tf.constant(BETA2, dtype),
                epsilon=epsilon,
                grad=g,
            )
        powers[0].assign(powers[0] * BETA1)
        powers[1].assign(powers[1] * BETA2)

    def net(self, name, parameters):
        tf = self.tf
        dtype = parameters[0].dtype
        parameters = [tf.Variable(p) for p in parameters]
        m = [tf.Variable(tf.zeros_like(p)) for p in parameters]
        v = [tf.Variable(tf.zeros_like(p)) for p in parameters]
        powers = [tf.Variable(tf.constant(beta, dtype)) for beta in (BETA1, BETA2)]

        def scores(h):
            rest = iter(parameters)
            if name == "readme_cnn":
                for _ in range(3):
                    h = tf.nn.leaky_relu(tf.nn.conv2d(h, next(rest), 1, "VALID"), SLOPE)
                    h = tf.nn.max_pool2d(h, 2, 2, "SAME")
                h = tf.reshape(h, [-1, 3 * 3 * 128])
            else:
                for _ in range(2):
                    h = tf.nn.leaky_relu(tf.matmul(h, next(rest)) + next(rest), SLOPE)
            return tf.matmul(h, next(rest)) + next(rest)

        def step(x, y):
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, scores(x))
                loss = tf.reduce_sum(losses)
            self.adam(parameters, m, v, powers, tape.gradient(loss, parameters))
            return loss

        self.step = tf.function(step)
        self.predict = tf.function(lambda x: tf.argmax(scores(x), 1))

    def tensors(self, x, y):
        return self.tf.constant(x), self.tf.constant(y)

    def train(self, x, y):
        return float(self.step(x, y))

    def evaluate(self, x):
        return self.predict(x).numpy()


LIBRARIES = {"smallpebble": SmallPebble, "torch": Torch, "jax": Jax, "tensorflow": TensorFlow}


class Worker:
    """Carries out the requests."""

    def __init__(self, extension=None):
        """`extension` is what a file with further requests defines, by name."""
        self.extension = extension or {}

    def answer(self, do, **request):
        for one in (self, getattr(self, "requests", None)):
            if hasattr(one, do):
                return getattr(one, do)(**request)
        raise ValueError(f"unknown request {do!r}")

    def load(self, library, threads):
        libraries = {**LIBRARIES, **self.extension.get("LIBRARIES", {})}
        self.library = libraries[library](threads)
        if "Requests" in self.extension:
            self.requests = self.extension["Requests"](library, self.library)
        return {"version": self.library.version, "details": getattr(self.library, "details", {})}

    def net(self, net, file):
        import numpy as np

        with np.load(file, allow_pickle=False) as arrays:
            n = sum(name.startswith("parameter") for name in arrays)
            parameters = [arrays[f"parameter{i}"] for i in range(n)]
            images, labels = arrays["images"], arrays["labels"]
        self.library.net(net, parameters)
        # Some libraries copy what they are given: once, here, and not in every step.
        self.batches = [self.library.tensors(x, y) for x, y in zip(images, labels)]
        return {}

    def batch(self, i):
        return self.batches[i % len(self.batches)]

    def train(self, first, n):
        started = time.perf_counter()
        losses = [self.library.train(*self.batch(i)) for i in range(first, first + n)]
        return {"seconds": time.perf_counter() - started, "losses": losses}

    def evaluate(self, first, n):
        started = time.perf_counter()
        for i in range(first, first + n):
            self.library.evaluate(self.batch(i)[0])
        return {"seconds": time.perf_counter() - started}

    def units(self, first, n):
        """Training steps, each followed by the evaluation of the next batch.

        Answers with seconds and page faults of each, the losses, the classes found by the last
        evaluation, and how often the process was interrupted meanwhile.
        """
        names = ("train", "evaluate", "losses", "train_faults", "evaluate_faults")
        columns = tuple([] for _ in names)
        before = interruptions()
        for i in range(first, first + n):
            (x, y), (other, _) = self.batch(i), self.batch(i + 1)
            faults = page_faults()
            started = time.perf_counter()
            loss = self.library.train(x, y)
            trained = time.perf_counter()
            train_faults = page_faults() - faults
            continued = time.perf_counter()
            classes = self.library.evaluate(other)
            ended = time.perf_counter()
            evaluate_faults = page_faults() - faults - train_faults
            row = (trained - started, ended - continued, loss, train_faults, evaluate_faults)
            for column, value in zip(columns, row):
                column.append(value)
        return {
            **dict(zip(names, columns)),
            "classes": [int(one) for one in classes],
            "interruptions": interruptions() - before,
        }

    def memory(self):
        """Bytes of this process in memory, now and at most so far; nothing where no one knows."""
        try:
            with open("/proc/self/status") as file:
                lines = dict(line.split(":", 1) for line in file)
        except OSError:
            return {"now": None, "peak": None}
        now, peak = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return {"now": now, "peak": peak}


def main(extension=None):
    # What a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(runpy.run_path(extension) if extension else None)
    for line in sys.stdin:
        try:
            answer = worker.answer(**json.loads(line))
        except Exception as error:
            text = (str(error).strip() or "no message").splitlines()[0]
            answer = {"error": f"{type(error).__name__}: {text}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    # Python puts the folder of a script first: its modules would hide others of the same name.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
    main(*sys.argv[1:])
