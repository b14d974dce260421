# %% [markdown]
# # A walk through automatic differentiation
#
# From two numbers and the chain rule to a net that learns. Open it in an editor that knows the
# `# %%` marks and run it cell by cell, or run it whole: `python examples/autodiff_walk.py`.

# %%
import math

import numpy as np

import smallpebble as sp

# %% [markdown]
# ## 1. By hand
#
# Take z = sin(x y) + x. How does z change if x changes a little, and how if y does? The trick is to
# go in small steps, each of which we can differentiate without thinking:
#
#     p = x y          dp/dx = y        dp/dy = x
#     s = sin(p)       ds/dp = cos(p)
#     z = s + x        dz/ds = 1        dz/dx = 1  (besides what comes through s)
#
# and then backwards, from z to the inputs, multiplying along the way (the chain rule) and adding up
# wherever two ways meet.

# %%
x, y = 2.0, 0.5

p = x * y
s = math.sin(p)
z = s + x

z_s = 1.0  # how z depends on s, and so on
z_p = z_s * math.cos(p)
z_y = z_p * x
z_x = z_p * y + 1.0  # two ways lead from x to z

print(f"z = {z:.4f}   dz/dx = {z_x:.4f}   dz/dy = {z_y:.4f}")

# %% [markdown]
# Never believe a derivative that you have not checked. Nudge each input and look:

# %%
nudge = 1e-6


def f(x, y):
    return math.sin(x * y) + x


print(f"nudged:      dz/dx = {(f(x + nudge, y) - f(x - nudge, y)) / (2 * nudge):.4f}", end="   ")
print(f"dz/dy = {(f(x, y + nudge) - f(x, y - nudge)) / (2 * nudge):.4f}")

# %% [markdown]
# ## 2. A Variable remembers
#
# What we did by hand is mechanical, so let the machine do it. A `Variable` holds an array, and
# every operation on it makes a new Variable that remembers its inputs, and for each of them a rule:
# how a gradient in the output becomes a gradient in the input. `get_gradients` walks backwards over
# these memories, exactly as we walked from z to x and y.

# %%
a = sp.Variable(np.array([1.0, 2.0, 3.0]))
b = sp.Variable(np.array([4.0, 5.0, 6.0]))
c = a * b + a
print(c)  # computed at once; what it remembers shows only when gradients are asked for

gradients = sp.get_gradients(c)
print("in a:", gradients[a])  # b + 1: two ways again
print("in b:", gradients[b])  # a

assert np.array_equal(gradients[a], b.array + 1)
assert np.array_equal(gradients[b], a.array)

# %% [markdown]
# `c` is an array, and `gradients` are those of the sum of its elements. A loss is one number
# anyhow.
#
# ## 3. The graph
#
# The memories form a graph: Variables, and arrows to the Variables they were made from. A
# Variable that is used many times has many ways to the end. To walk each of them would take time
# that doubles with every `double = double + double`: twenty of them have a million ways. The walk
# goes over Variables instead, each one once, after everything that was made from it: twenty stops.

# %%
one = sp.Variable(np.array(1.0))
double = one
for _ in range(20):
    double = double + double
print("2 to the 20th:", sp.get_gradients(double)[one])

# %% [markdown]
# Shapes take part. A row added to every row of a matrix was used once a row, so its gradient is the
# sum over the rows: broadcasting and summing are each other's reverse.

# %%
matrix, row = sp.Variable(np.ones((4, 3))), sp.Variable(np.arange(3.0))
print("in the row:", sp.get_gradients(matrix + row)[row])

# %% [markdown]
# ## 4. The check, by machine
#
# Nudging every input is slow, since it takes two evaluations for each number, and rough. But it
# needs no thinking, which makes it the judge. `check_grad` compares all gradients with nudged ones
# and raises `NumericalError` if they differ.

# %%
rng = np.random.default_rng(0)
some, others = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))


def layer(a, b):
    return sp.tanh(sp.matmul(a, b))


print("nudged:", sp.gradcheck.numgrads(lambda a, b: np.tanh(a @ b), [some, others])[1][0])
variables = sp.Variable(some), sp.Variable(others)
print("exact: ", sp.get_gradients(layer(*variables))[variables[1]][0])
sp.gradcheck.check_grad([some, others], layer, delta=1e-5)

# %% [markdown]
# ## 5. An operation of your own
#
# softplus(a) = log(1 + exp(a)) is a smooth version of max(a, 0), and its derivative is the sigmoid.
# With the decorator `primitive` an operation is a function on arrays that returns its value and one
# rule per input. A rule gets `g`, the gradient in the output, then the output `y` and the inputs.


# %%
@sp.primitive
def softplus(a):
    """log(1 + exp(a)), without overflow."""
    return np.logaddexp(0, a), lambda g, y, a: g * sp.sigmoid(a)


v = sp.Variable(np.array([-1.0, 0.0, 100.0]))
print(softplus(v), sp.get_gradients(softplus(v))[v])
sp.gradcheck.check_grad([some], softplus, delta=1e-5)

# %% [markdown]
# With two inputs there are two rules. If their shapes differ, each rule sums its gradient back to
# the shape of its input, with `sum_to`.


# %%
@sp.primitive
def weighted(a, weights):
    return (
        a * weights,
        lambda g, y, a, weights: sp.sum_to(g * weights, a.shape),
        lambda g, y, a, weights: sp.sum_to(g * a, weights.shape),
    )


sp.gradcheck.check_grad([some, np.arange(1.0, 5.0)], weighted)

# %% [markdown]
# There is a shorter form for a quick experiment: make the Variable yourself, and say for each input
# what turns the gradient in the output into the gradient in the input.


# %%
def cube(a):
    return sp.Variable(a.array**3, [(a, lambda g: g * 3 * a.array**2)])


sp.gradcheck.check_grad([some], cube, lambda a: a**3, delta=1e-5)

# %% [markdown]
# And if the rule is wrong? Then the judge says so.


# %%
def wrong_cube(a):
    return sp.Variable(a.array**3, [(a, lambda g: g * 2 * a.array**2)])


try:
    sp.gradcheck.check_grad([some], wrong_cube, lambda a: a**3, delta=1e-5)
except sp.gradcheck.NumericalError as error:
    print("NumericalError:", error)
else:
    raise AssertionError("a wrong rule went unnoticed")

# %% [markdown]
# ## 6. Derivatives of derivatives
#
# The rules of a primitive are written in operators and operations, which take arrays and Variables
# alike. So they can themselves be recorded: with `differentiable=True` the gradients are Variables
# that remember, and can be differentiated again. (The short form above works on arrays only: use
# the decorator for this.)

# %%
v = sp.Variable(np.array(0.3))
first = sp.get_gradients(softplus(v), v, differentiable=True)[v]
second = sp.get_gradients(first, v, differentiable=True)[v]
third = sp.get_gradients(second, v)[v]

sigmoid = 1 / (1 + math.exp(-0.3))
derivatives = first.item(), second.item(), float(third)
print("the first three derivatives of softplus at 0.3:", *(f"{d:.6f}" for d in derivatives))
assert math.isclose(first.item(), sigmoid)
assert math.isclose(second.item(), sigmoid * (1 - sigmoid))
assert math.isclose(third, sigmoid * (1 - sigmoid) * (1 - 2 * sigmoid))
sp.gradcheck.check_grad([some], softplus, delta=1e-5, order=2)

# %% [markdown]
# ## 7. Newton's method
#
# With second derivatives, a minimum is a few steps away. Near a point, a function looks like a
# parabola; Newton jumps to the bottom of it, and starts again from there. Here is a valley that is
# famous for its slowness with plain gradients, Rosenbrock's (1 - x)^2 + 100 (y - x^2)^2, with its
# bottom at (1, 1).


# %%
def valley(point):
    return (1 - point[0]) ** 2 + 100 * (point[1] - point[0] ** 2) ** 2


position = np.array([-1.0, 1.5])
for step in range(8):
    point = sp.Variable(position)
    height = valley(point)
    slope = sp.get_gradients(height, point, differentiable=True)[point]
    curvature = np.stack([sp.get_gradients(slope[i], point)[point] for i in range(2)])
    print(f"step {step}: {position.round(6)}, height {height.item():.3g}")
    position = position - np.linalg.solve(curvature, slope.array)
assert np.allclose(position, 1)

# %% [markdown]
# ## 8. A net that learns
#
# All of it together: a net is a function of numbers and of parameters, a loss says how wrong it is,
# the gradients in the parameters say how to be less wrong, and a step is taken. Again, and again.
# Here a net with one hidden layer learns a sine from noisy points.

# %%
inputs = rng.uniform(-3.5, 3.5, (200, 1))
targets = np.sin(inputs) + 0.05 * rng.normal(size=inputs.shape)

weights1 = sp.Variable(rng.normal(size=(1, 16)))
bias1 = sp.Variable(np.zeros(16))
weights2 = sp.Variable(rng.normal(size=(16, 1)) / 4)
bias2 = sp.Variable(np.zeros(1))
parameters = [weights1, bias1, weights2, bias2]


def net(a):
    return sp.tanh(a @ weights1 + bias1) @ weights2 + bias2


adam = sp.Adam(alpha=0.02)
for step in range(1001):
    loss = ((net(sp.Variable(inputs)) - targets) ** 2).mean()
    adam.training_step(parameters, sp.get_gradients(loss))
    if step % 200 == 0:
        print(f"step {step:4}: loss {loss.item():.4f}")

grid = np.linspace(-3, 3, 7).reshape(-1, 1)
with sp.no_grad():
    guesses = net(sp.Variable(grid)).array
for a, guess in zip(grid[:, 0], guesses[:, 0]):
    print(f"sin({a:4.1f}) = {math.sin(a):7.4f}   the net says {guess:7.4f}")
assert np.max(np.abs(guesses - np.sin(grid))) < 0.1

# %% [markdown]
# That is all there is to it. The library's `core.py` holds the Variable, the primitive and the
# walk; `ops.py` holds the operations, each with its rules.
