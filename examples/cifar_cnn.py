"""Train a convolutional net on CIFAR-10, photographs of ten kinds of things, and draw the curves.

    python examples/cifar_cnn.py --steps 300

The data is downloaded once (170 MB), or found in the folder that SMALLPEBBLE_DATA names.
"""

import argparse

import numpy as np

import smallpebble as sp
from smallpebble.cli.progress import open_progress
from smallpebble.datasets import load_data

parser = argparse.ArgumentParser(description="Train a convolutional net on CIFAR-10.")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--plot", metavar="FILE", default="cifar_cnn.png")
args = parser.parse_args()

# The last tenth is held out to see how the net does on images it never saw.
X, y, _, _ = load_data("cifar")
n_train = len(X) * 9 // 10
X_train, y_train = X[:n_train], y[:n_train]
X_eval, y_eval = X[n_train:], y[n_train:]


def as_images(rows):
    """Rows of bytes as (n, height, width, red-green-blue), 0 to 1."""
    return sp.Variable(rows.reshape(-1, 32, 32, 3) / np.float32(255))


# Three stages of convolution, bend and pooling: 32x32 -> 15x15 -> 7x7 -> 3x3.
X_in = sp.Placeholder("images")
y_true = sp.Placeholder("labels")
h = X_in
for depth, n_kernels in [(3, 32), (32, 128), (128, 128)]:
    h = sp.convlayer(3, 3, depth, n_kernels)(h)
    h = sp.Lazy(sp.leaky_relu)(h)
    h = sp.Lazy(lambda images: sp.maxpool2d(images, 2, 2, strides=[2, 2]))(h)
h = sp.Lazy(lambda images: sp.reshape(images, [-1, 3 * 3 * 128]))(h)
h = sp.linearlayer(3 * 3 * 128, 10)(h)
y_pred = sp.Lazy(sp.softmax)(h)
loss = sp.Lazy(sp.cross_entropy)(y_pred, y_true)
learnables = sp.get_learnables(y_pred)


@sp.no_grad()
def accuracy(images, labels):
    right = 0
    for i in range(0, len(images), 500):  # in parts: the net's inner images take 0.4 MB each
        X_in.assign_value(as_images(images[i : i + 500]))
        right += np.sum(np.argmax(y_pred.run().array, axis=1) == labels[i : i + 500])
    return right / len(images)


losses, accuracies = [], []
adam = sp.Adam()
batches = sp.batch(X_train, y_train, args.batch, seed=0)
with open_progress(args.steps, "step") as progress:
    for step in range(1, args.steps + 1):
        images, labels = next(batches)
        X_in.assign_value(as_images(images))
        y_true.assign_value(labels)
        value = loss.run()
        adam.training_step(learnables, sp.get_gradients(value))
        losses.append(float(value.array) / args.batch)
        if step % 20 == 0 or step == args.steps:
            accuracies.append((step, accuracy(X_eval[:500], y_eval[:500])))
        seen = f"  accuracy {accuracies[-1][1]:.4f}" if accuracies else ""
        progress.update(step, f"loss {losses[-1]:.4f}{seen}")

print(f"Final validation accuracy: {accuracy(X_eval, y_eval):.4f}")

try:
    from matplotlib.figure import Figure
except ImportError:
    print('To draw the curves: pip install "smallpebble[plot]"')
else:
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle("A convolutional net on CIFAR-10")
    left, right = figure.subplots(1, 2)
    left.plot(losses)
    left.set(xlabel="step", ylabel="loss")
    right.plot(*zip(*accuracies))
    right.set(xlabel="step", ylabel="validation accuracy", ylim=(0, 1))
    figure.savefig(args.plot)
    print(f"Curves: {args.plot}")
