"""Quadratics of known spectrum, some with the diagonal that preconditions them."""

import jax.numpy as jnp
import numpy as np

from benchmarks.problems.problem import Problem


def _quadratic(n, condition, seed):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = basis @ (np.logspace(0, np.log10(condition), n)[:, None] * basis.T)
    return (lambda x: x @ (matrix @ x) / 2 - jnp.sum(x)), np.zeros(n), None


def _badly_scaled_quadratic(n, decades, seed):
    """S C S with C well conditioned and S diagonal over many decades."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(0, decades / 2, n)
    factor = rng.standard_normal((n, 2 * n))
    core = factor @ factor.T / (2 * n)
    matrix = scale[:, None] * core * scale
    linear = scale * rng.standard_normal(n)

    def fun(x):
        return x @ (matrix @ x) / 2 - linear @ x

    return fun, np.zeros(n), np.diag(matrix).copy()


def problems() -> list[Problem]:
    """Quadratics of known spectrum; `diagonal` where a diagonal preconditions them."""
    entries = [
        ("quadratic_1e2_300", *_quadratic(300, 1e2, 0)),
        ("quadratic_1e4_300", *_quadratic(300, 1e4, 1)),
        ("quadratic_1e6_100", *_quadratic(100, 1e6, 2)),
        ("scaled_quadratic_1e4_200", *_badly_scaled_quadratic(200, 4, 3)),
        ("scaled_quadratic_1e6_200", *_badly_scaled_quadratic(200, 6, 4)),
    ]
    return [Problem(name, "quadratic", *entry) for name, *entry in entries]
