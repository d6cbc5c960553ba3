"""Regressions, classifiers, a factorisation, a network, discretised equations."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems.problem import Problem


def _logistic(rows, columns, decades, ridge, seed):
    rng = np.random.default_rng(seed)
    scales = np.logspace(0, -decades, columns)
    features = rng.standard_normal((rows, columns)) * scales
    truth = rng.standard_normal(columns) / scales / np.sqrt(columns)
    labels = np.where(features @ truth + rng.logistic(size=rows) > 0, 1.0, -1.0)

    def fun(x):
        margins = labels * (features @ x)
        return jnp.mean(jax.nn.softplus(-margins)) + ridge / 2 * jnp.sum(x**2)

    return fun, np.zeros(columns)


def _softmax_regression(seed, rows=500, inputs=40, classes=10):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, inputs)) @ np.diag(np.logspace(0, -2, inputs))
    scores = features @ rng.standard_normal((inputs, classes)) * 3
    labels = (scores + rng.gumbel(size=scores.shape)).argmax(1)

    def fun(x):
        logits = features @ x.reshape(inputs, classes)
        loss = -jnp.mean(jax.nn.log_softmax(logits)[np.arange(rows), labels])
        return loss + 5e-5 * jnp.sum(x**2)

    return fun, np.zeros(inputs * classes)


def _factorisation(seed, rows=40, columns=30, rank=3):
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    seen = rng.uniform(size=target.shape) < 0.5
    start = 0.1 * rng.standard_normal((rows + columns) * rank)

    def fun(x):
        left = x[: rows * rank].reshape(rows, rank)
        right = x[rows * rank :].reshape(rank, columns)
        error = jnp.sum(jnp.where(seen, left @ right - target, 0.0) ** 2)
        return error / 2 + 1e-2 * jnp.sum(x**2)

    return fun, start


def _network(seed, width=12, rows=200):
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(-1, 1, (rows, 2))
    targets = np.sin(3 * inputs[:, 0]) * np.cos(2 * inputs[:, 1])
    shapes = [(2, width), (width,), (width, width), (width,), (width,), ()]
    sizes = [int(np.prod(shape)) for shape in shapes]
    start = rng.standard_normal(sum(sizes)) * 0.5

    def fun(x):
        pieces = jnp.split(x, np.cumsum(sizes)[:-1])
        w1, b1, w2, b2, w3, b3 = (
            piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)
        )
        hidden = jnp.tanh(jnp.tanh(inputs @ w1 + b1) @ w2 + b2)
        return jnp.mean((hidden @ w3 + b3 - targets) ** 2) + 1e-4 * jnp.sum(x**2)

    return fun, start


def _robust_regression(seed, rows=400, columns=100):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, columns))
    targets = features @ rng.standard_normal(columns) + rng.standard_cauchy(rows)

    def fun(x):
        return jnp.mean(jnp.sqrt(1 + (features @ x - targets) ** 2))

    return fun, np.zeros(columns)


def _bratu(side, strength=5.0):
    h = 1 / (side + 1)

    def fun(x):
        u = jnp.pad(x.reshape(side, side), 1)
        energy = jnp.sum((u[1:] - u[:-1]) ** 2) + jnp.sum((u[:, 1:] - u[:, :-1]) ** 2)
        return energy / 2 - strength * h**2 * jnp.sum(jnp.exp(u))

    return fun, np.zeros(side * side)


def _lennard_jones(seed, atoms=13):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), -1).reshape(-1, 3)[:atoms]
    start = 1.1 * grid + 0.05 * rng.standard_normal((atoms, 3))
    i, j = np.triu_indices(atoms, 1)

    def fun(x):
        points = x.reshape(atoms, 3)
        inverse = 1 / jnp.sum((points[i] - points[j]) ** 2, axis=1) ** 3
        return 4 * jnp.sum(inverse**2 - inverse)

    return fun, start.ravel()


def _deconvolution(seed, n=256):
    rng = np.random.default_rng(seed)
    grid = np.arange(n)
    kernel = np.exp(-(np.minimum(grid, n - grid) ** 2) / (2 * 3.0**2))
    kernel /= kernel.sum()
    blur = np.stack([np.roll(kernel, k) for k in range(n)])
    signal = np.repeat(rng.standard_normal(n // 32), 32)
    data = blur @ signal + 0.01 * rng.standard_normal(n)

    def fun(x):
        roughness = jnp.sum(jnp.sqrt(1e-4 + (x - jnp.roll(x, 1)) ** 2))
        return jnp.sum((blur @ x - data) ** 2) / 2 + 1e-2 * roughness

    return fun, np.zeros(n)


def problems() -> list[Problem]:
    """Regressions, a network and discretised equations, from fixed random data."""
    entries = [
        ("logistic_100", *_logistic(500, 100, 0, 1e-4, 0)),
        ("logistic_scaled_100", *_logistic(500, 100, 1.5, 1e-5, 1)),
        ("softmax_400", *_softmax_regression(2)),
        ("robust_100", *_robust_regression(3)),
        ("factorisation_210", *_factorisation(4)),
        ("network_205", *_network(5)),
        ("bratu_30x30", *_bratu(30)),
        ("lennard_jones_39", *_lennard_jones(6)),
        ("deconvolution_256", *_deconvolution(7)),
    ]
    return [Problem(name, "data", fun, start) for name, fun, start in entries]
