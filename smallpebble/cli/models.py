"""The nets that the commands train and time, built through the public lazy API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import smallpebble as sp

N_CLASSES = 10


@dataclass
class Model:
    """A lazy graph with its placeholders, and what it takes to train and ask it."""

    images: sp.Placeholder
    labels: sp.Placeholder
    scores: sp.Lazy  # (n, N_CLASSES); the class is the largest one's
    loss: sp.Lazy
    parameters: dict[str, sp.Variable]  # by name, in order of first use
    image_shape: tuple[int, ...]  # of one image: inputs are reshaped to it
    dtype: np.dtype

    def train_step(self, optimizer: sp.Adam, images: np.ndarray, labels: np.ndarray) -> float:
        """Update the parameters by one batch; return the loss from before the update."""
        self._feed(images)
        self.labels.assign_value(labels)
        loss = self.loss.run()
        learnables = list(self.parameters.values())
        optimizer.training_step(learnables, sp.get_gradients(loss))
        return float(loss.array)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class of each image."""
        self._feed(images)
        with sp.no_grad():
            return np.argmax(self.scores.run().array, axis=1)

    def _feed(self, images: np.ndarray) -> None:
        images = images.reshape(len(images), *self.image_shape).astype(self.dtype, copy=False)
        self.images.assign_value(sp.Variable(images))


class _Builder:
    """Adds layers one after another, and gives the parameters of each a name."""

    def __init__(self, dtype, rng: np.random.Generator | None) -> None:
        self.images, self.labels = sp.Placeholder(), sp.Placeholder()
        self.node: sp.Lazy = self.images
        self.parameters: dict[str, sp.Variable] = {}
        self.options = {"dtype": np.dtype(dtype), "rng": rng}

    def layer(self, name: str, layer) -> None:
        self.node = layer(self.node)
        known = set(self.parameters.values())
        for variable in sp.get_learnables(self.node):
            if variable not in known:
                kind = "bias" if variable.ndim == 1 else "weights"
                self.parameters[f"{name}.{kind}"] = variable

    def linear(self, name: str, n_in: int, n_out: int) -> None:
        self.layer(name, sp.linearlayer(n_in, n_out, **self.options))

    def conv(self, name: str, depth: int, n_kernels: int, padding: str) -> None:
        self.layer(name, sp.convlayer(3, 3, depth, n_kernels, padding, **self.options))

    def apply(self, function) -> None:
        self.node = sp.Lazy(function)(self.node)

    def activate_and_pool(self) -> None:
        self.apply(sp.leaky_relu)
        self.apply(lambda images: sp.maxpool2d(images, 2, 2, strides=[2, 2]))

    def flatten(self, n: int) -> None:
        self.apply(lambda images: sp.reshape(images, [-1, n]))

    def model(self, loss, image_shape: Sequence[int]) -> Model:
        return Model(
            self.images,
            self.labels,
            self.node,
            sp.Lazy(loss)(self.node, self.labels),
            self.parameters,
            tuple(image_shape),
            self.options["dtype"],
        )


def _mean_loss(logits: sp.Variable, labels: np.ndarray) -> sp.Variable:
    return sp.softmax_cross_entropy(logits, labels, reduction="mean")


def mlp(
    n_inputs: int,
    hidden: Sequence[int] = (100, 100),
    dtype: str = "float32",
    rng: np.random.Generator | None = None,
) -> Model:
    """A net of fully connected layers, for images of `n_inputs` numbers."""
    build = _Builder(dtype, rng)
    for i, n_outputs in enumerate(hidden, 1):
        build.linear(f"linear{i}", n_inputs, n_outputs)
        build.apply(sp.leaky_relu)
        n_inputs = n_outputs
    build.linear(f"linear{len(hidden) + 1}", n_inputs, N_CLASSES)
    return build.model(_mean_loss, (-1,))


def cnn(
    image_shape: tuple[int, int, int],
    dtype: str = "float32",
    rng: np.random.Generator | None = None,
) -> Model:
    """A small convolutional net for images of any height, width and depth.

    3x3 convolutions, each followed by a pooling that halves the image: two of them, and more until
    it is no more than 4 high or wide. Then one linear layer. The first has 32 kernels, each further
    one twice as many as the one before.
    """
    height, width, depth = image_shape
    build = _Builder(dtype, rng)
    n_kernels, stage = 32, 1
    while stage <= 2 or min(height, width) > 4:
        build.conv(f"conv{stage}", depth, n_kernels, "SAME")
        build.activate_and_pool()
        height, width = -(-height // 2), -(-width // 2)
        depth, n_kernels, stage = n_kernels, 2 * n_kernels, stage + 1
    build.flatten(height * width * depth)
    build.linear("linear", height * width * depth, N_CLASSES)
    return build.model(_mean_loss, image_shape)


def readme_mlp(dtype: str = "float32", rng: np.random.Generator | None = None) -> Model:
    """The MNIST net of the README: 784-100-100-10."""
    build = _Builder(dtype, rng)
    build.linear("linear1", 28 * 28, 100)
    build.apply(sp.leaky_relu)
    build.linear("linear2", 100, 100)
    build.apply(sp.leaky_relu)
    build.linear("linear3", 100, 10)
    build.apply(sp.softmax)
    return build.model(sp.cross_entropy, (784,))


def readme_cnn(dtype: str = "float32", rng: np.random.Generator | None = None) -> Model:
    """The CIFAR net of the README: three 3x3 convolutions of 32, 128 and 128 kernels, pooled."""
    build = _Builder(dtype, rng)
    for i, (depth, n_kernels) in enumerate([(3, 32), (32, 128), (128, 128)], 1):
        build.conv(f"conv{i}", depth, n_kernels, "VALID")
        build.activate_and_pool()
    build.flatten(3 * 3 * 128)
    build.linear("linear", 3 * 3 * 128, 10)
    build.apply(sp.softmax)
    return build.model(sp.cross_entropy, (32, 32, 3))


def readme_flops(name: str, batch: int) -> tuple[int, int]:
    """Floating-point operations of a README net's products: a training step, and a forward pass.

    A multiplication and an addition count as two, and convolutions as computed directly. The
    gradient in the images is not needed, and not counted.
    """
    if name == "readme_mlp":
        layers = [784 * 100, 100 * 100, 100 * 10]
    else:
        convolutions = [(30, 3, 32), (13, 32, 128), (5, 128, 128)]
        layers = [side * side * 9 * depth * n for side, depth, n in convolutions]
        layers.append(3 * 3 * 128 * 10)
    forward = 2 * batch * sum(layers)
    return 3 * forward - 2 * batch * layers[0], forward
