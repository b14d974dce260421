"""Train a fully connected net on MNIST, the handwritten digits, and draw how it learned.

    python examples/mnist_mlp.py --steps 600

The data is downloaded once (11.5 MB), or found in the folder that SMALLPEBBLE_DATA names.
"""

import argparse

import numpy as np

import smallpebble as sp
from smallpebble.cli.progress import open_progress
from smallpebble.datasets import load_data

parser = argparse.ArgumentParser(description="Train a fully connected net on MNIST.")
parser.add_argument("--steps", type=int, default=600)
parser.add_argument("--batch", type=int, default=200)
parser.add_argument("--plot", metavar="FILE", default="mnist_mlp.png")
args = parser.parse_args()

# The last sixth, 10,000 images, is held out to see how the net does on images it never saw. The
# test images proper are left for the day when no choice depends on them any more.
X, y, _, _ = load_data("mnist")
X = X / np.float32(255)
n_train = len(X) * 5 // 6
X_train, y_train = X[:n_train], y[:n_train]
X_eval, y_eval = X[n_train:], y[n_train:]

# The net is a lazy graph: nothing is computed until something is run.
X_in = sp.Placeholder("images")
y_true = sp.Placeholder("labels")
h = sp.linearlayer(28 * 28, 100)(X_in)
h = sp.Lazy(sp.leaky_relu)(h)
h = sp.linearlayer(100, 100)(h)
h = sp.Lazy(sp.leaky_relu)(h)
h = sp.linearlayer(100, 10)(h)
y_pred = sp.Lazy(sp.softmax)(h)
loss = sp.Lazy(sp.cross_entropy)(y_pred, y_true)
learnables = sp.get_learnables(y_pred)


@sp.no_grad()
def accuracy(images, labels):
    X_in.assign_value(sp.Variable(images))
    return float(np.mean(np.argmax(y_pred.run().array, axis=1) == labels))


losses, accuracies = [], []
adam = sp.Adam()
batches = sp.batch(X_train, y_train, args.batch, seed=0)
with open_progress(args.steps, "step") as progress:
    for step in range(1, args.steps + 1):
        images, labels = next(batches)
        X_in.assign_value(sp.Variable(images))
        y_true.assign_value(labels)
        value = loss.run()
        adam.training_step(learnables, sp.get_gradients(value))
        losses.append(float(value.array) / args.batch)
        if step % 20 == 0 or step == args.steps:
            accuracies.append((step, accuracy(X_eval[:1000], y_eval[:1000])))
        seen = f"  accuracy {accuracies[-1][1]:.4f}" if accuracies else ""
        progress.update(step, f"loss {losses[-1]:.4f}{seen}")

print(f"Final validation accuracy: {accuracy(X_eval, y_eval):.4f}")

try:
    from matplotlib.figure import Figure
except ImportError:
    print('To draw the curves: pip install "smallpebble[plot]"')
else:
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle("A fully connected net on MNIST")
    left, right = figure.subplots(1, 2)
    left.plot(losses)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.plot(*zip(*accuracies))
    right.set(xlabel="step", ylabel="validation accuracy", ylim=(0, 1))
    figure.savefig(args.plot)
    print(f"Curves: {args.plot}")
