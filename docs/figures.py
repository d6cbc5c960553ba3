"""Draws the pictures of the page on the algorithm.

    python docs/figures.py

writes them to `docs/figures/`, where they are committed: the site is built without it.
"""

import pathlib

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import optax_nlcg

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FOLDER = pathlib.Path(__file__).parent / "figures"
RED, BLUE, GREEN, GRAY = "#D55E00", "#0072B2", "#009E73", "#888888"


def new_figure(columns, size=(4.0, 3.4)):
    """A row of panels, each of a size in inches."""
    figure, axes = plt.subplots(
        1, columns, figsize=(size[0] * columns, size[1]), layout="constrained"
    )
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def train(fun, optimizer, start, num_steps):
    """Points, values and scales of some steps; `fun` takes the step's number too."""

    def step(carry, i):
        x, state = carry

        def value_fn(x):
            return fun(x, i)

        value, grad = jax.value_and_grad(value_fn)(x)
        updates, state = optimizer.update(
            grad, state, x, value=value, grad=grad, value_fn=value_fn
        )
        scale = optax.tree.get(state, "scale", jnp.nan)
        return (optax.apply_updates(x, updates), state), (x, value, scale)

    carry = (start, optimizer.init(start))
    return jax.jit(lambda: jax.lax.scan(step, carry, jnp.arange(num_steps))[1])()


def directions():
    """Steepest descent, conjugate directions, and both with a preconditioner."""
    hessian = jnp.array([[1.0, 1.6], [1.6, 8.0]])
    start = jnp.array([-4.0, -0.6])

    def quadratic(x, _):
        return 0.5 * x @ hessian @ x

    def exact(preconditioner, beta_rule):
        return optax_nlcg.nlcg(
            1.0,
            beta_rule=beta_rule,
            preconditioner=preconditioner,
            line_search=optax_nlcg.scale_by_curvature_line_search(decay=0.0),
        )

    by_diagonal = optax_nlcg.scale_by_hessian_diagonal("exact", update_every=1)
    panels = {
        "steepest descent": exact(optax.identity(), 0.0),
        "conjugate directions": exact(optax.identity(), "fletcher_reeves"),
        "descent, P = 1 / diag H": exact(by_diagonal, 0.0),
        "conjugate, P = 1 / diag H": exact(by_diagonal, "fletcher_reeves"),
    }
    axis_x, axis_y = np.linspace(-4.5, 1.8, 121), np.linspace(-1.3, 1.5, 101)
    grid = np.stack(np.meshgrid(axis_x, axis_y), -1)
    heights = np.einsum("abi,ij,abj->ab", grid, hessian, grid) / 2
    figure, axes = new_figure(len(panels), (3.3, 2.9))
    for axis, (title, optimizer) in zip(axes, panels.items(), strict=True):
        points, values, _ = train(quadratic, optimizer, start, 30)
        done = int(np.argmax(np.asarray(values) < 1e-5 * values[0]))
        axis.contour(
            axis_x, axis_y, heights, np.geomspace(0.05, 12, 9), cmap="Greys_r",
            linewidths=0.6,
        )  # fmt: skip
        axis.plot(*points[: done + 1].T, ".-", color=RED, linewidth=1.3)
        axis.plot(0, 0, "*", color=BLUE, markersize=9)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{title}: {done} steps", fontsize=10)
    return figure


def step_search():
    """What the search does to a rise of the loss, and a run at too large a rate."""
    rises = np.linspace(-0.02, 0.2, 441)
    search = optax_nlcg.scale_by_step_line_search(period=1, loss_decay=0.0, growth=1.0)

    def respond(rise):
        # Two steps whose loss rises by `rise`: what becomes of the update 1 after 1.
        one = jnp.ones(())
        state = search.init(one)
        _, state = search.update(one, state, one, value=1.0)
        update, state = search.update(one, state, one, value=1.0 + rise)
        scale = state.scale
        return scale, (scale - update) / (1 + scale)

    scales, fractions = jax.vmap(respond)(jnp.asarray(rises))
    figure, (left, middle, right) = new_figure(3, (3.7, 3.1))
    left.plot(100 * rises, scales, color=RED, label="factor on the scale")
    left.plot(100 * rises, fractions, color=BLUE, ls="--", label="fraction taken back")
    left.set(xlabel="rise of the averaged loss, % (threshold 1)", ylim=(0, 1.05))
    left.legend(frameon=False, fontsize=9, loc="center left")

    spectrum = jnp.geomspace(0.01, 1.0, 50)
    start = jnp.ones(50)

    def noisy(x, i):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (50,))
        return 0.5 * jnp.sum(spectrum * (x - 0.2 * noise) ** 2)

    rate = 2.5
    runs = {
        "with the search": (optax_nlcg.scale_by_step_line_search(), RED, "-"),
        "without": (optax.identity(), GRAY, "--"),
    }
    for name, (line_search, color, dashes) in runs.items():
        optimizer = optax_nlcg.nlcg(
            rate, preconditioner=optax.identity(), line_search=line_search
        )
        _, values, scale = train(noisy, optimizer, start, 150)
        middle.plot(np.minimum(values, 1e4), color=color, ls=dashes, lw=1.2, label=name)
        if name == "with the search":
            right.plot(scale, color=color, lw=1.2)
    middle.set(yscale="log", ylim=(0.05, 20), xlabel="step")
    middle.set_title(f"loss of a noisy quadratic, rate {rate}", fontsize=10)
    middle.legend(frameon=False, fontsize=9)
    right.set(xlabel="step", ylim=(0, 1.05))
    right.set_title("scale", fontsize=10)
    return figure


def estimators():
    """Averages of Hutchinson's products tend to the diagonal or to the row norm."""
    sizes = (6, 8, 3)
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], (64, sizes[0]))
    labels = jax.random.randint(keys[1], (64,), 0, sizes[2])
    params = (
        jax.random.normal(keys[2], sizes[:2]) / 2,
        jax.random.normal(keys[3], sizes[1:]) / 2,
    )
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def loss(flat):
        first, second = unravel(flat)
        logits = jnp.tanh(inputs @ first) @ second
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    hessian = jax.hessian(lambda p: loss(p)[0])(flat)
    num_draws = 4096
    draws = jax.random.split(jax.random.key(1), num_draws)

    def draw(method, fun):
        estimate = optax_nlcg.hessian_diagonal
        return jax.lax.map(lambda k: estimate(fun, flat, k, method=method), draws)

    products = draw("hutchinson", lambda p: loss(p)[0])
    squares = draw("gauss_newton_bartlett", loss)
    counts = jnp.arange(1, num_draws + 1)[:, None]
    signed = jnp.abs(jnp.cumsum(products, 0) / counts)
    row_norm = jnp.sqrt(jnp.cumsum(products**2, 0) / counts)
    newton = jnp.cumsum(squares, 0) / counts

    diagonal = jnp.abs(jnp.diag(hessian))
    rows = jnp.linalg.norm(hessian, axis=1)
    figure, (left, right) = new_figure(2, (4.4, 3.3))
    at = np.unique(np.geomspace(1, num_draws, 60).astype(int)) - 1

    def error(estimates, exact):
        return jnp.linalg.norm(estimates[at] - exact, axis=1) / jnp.linalg.norm(exact)

    lines = {
        "signed, from |diag H|": (signed, diagonal, RED, "-"),
        "row_norm, from |diag H|": (row_norm, diagonal, BLUE, "-"),
        "row_norm, from the rows' norms": (row_norm, rows, BLUE, "--"),
        "Gauss-Newton-Bartlett, from |diag H|": (newton, diagonal, GREEN, "-."),
    }
    for label, (estimates, exact, color, dashes) in lines.items():
        left.loglog(
            at + 1, error(estimates, exact), color=color, ls=dashes, label=label
        )
    left.set(xlabel="probes averaged", ylabel="relative error")
    left.legend(frameon=False, fontsize=8)
    few = 16
    right.plot(diagonal, signed[few - 1], ".", color=RED, label=f"signed, {few} probes")
    right.plot(
        diagonal, row_norm[few - 1], "x", color=BLUE, ms=4, label=f"row_norm, {few}"
    )
    limits = [float(diagonal.min()), float(rows.max())]
    right.plot(limits, limits, color=GRAY, lw=0.8)
    right.set(xscale="log", yscale="log", xlabel="|diag H|", ylabel="estimate")
    right.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Writes all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for draw in directions, step_search, estimators:
        figure = draw()
        figure.savefig(FOLDER / f"{draw.__name__}.png", dpi=120)
        plt.close(figure)


if __name__ == "__main__":
    main()
