"""Scalable problems of the CUTE collection, 100 to 10,000 variables.

Bongartz, Conn, Gould and Toint, ACM TOMS 21(1), 1995.
"""

import jax.numpy as jnp
import numpy as np

from benchmarks.problems.more_garbow_hillstrom import extended_rosenbrock, wood
from benchmarks.problems.problem import Problem, indices, least_squares


def _arwhead(x):
    return jnp.sum((x[:-1] ** 2 + x[-1] ** 2) ** 2 - 4 * x[:-1] + 3)


def _dqdrtic(x):
    return jnp.sum(x[:-2] ** 2 + 100 * x[1:-1] ** 2 + 100 * x[2:] ** 2)


def _liarwhd(x):
    return jnp.sum(4 * (x**2 - x[0]) ** 2 + (x - 1) ** 2)


def _engval1(x):
    return jnp.sum((x[:-1] ** 2 + x[1:] ** 2) ** 2 - 4 * x[:-1] + 3)


def _edensch(x):
    a, b = x[:-1], x[1:]
    return 16 + jnp.sum((a - 2) ** 4 + (a * b - 2 * b) ** 2 + (b + 1) ** 2)


def _tridia(x):
    weights = indices(x.shape[0])[1:]
    return (x[0] - 1) ** 2 + jnp.sum(weights * (2 * x[1:] - x[:-1]) ** 2)


def _dixon3dq(x):
    return (x[0] - 1) ** 2 + jnp.sum((x[:-1] - x[1:]) ** 2) + (x[-1] - 1) ** 2


def _nondquar(x):
    quartic = jnp.sum((x[:-2] + x[1:-1] + x[-1]) ** 4)
    return (x[0] - x[1]) ** 2 + quartic + (x[-2] + x[-1]) ** 2


def _cragglvy(x):
    a, b, c, d = x[0:-3:2], x[1:-2:2], x[2:-1:2], x[3::2]
    gap = jnp.tan(c - d) + (c - d)
    return jnp.sum(
        (jnp.exp(a) - b) ** 4 + 100 * (b - c) ** 6 + gap**4 + a**8 + (d - 1) ** 2
    )


def _genrose(x):
    return 1 + jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (x[1:] - 1) ** 2)


def _fletchcr(x):
    return 100 * jnp.sum((x[1:] - x[:-1] + 1 - x[:-1] ** 2) ** 2)


def _chainwoo(x):
    a, b, c, d = x[0:-2:2], x[1:-1:2], x[2::2], x[3::2]
    return 1 + jnp.sum(
        100 * (b - a**2) ** 2
        + (1 - a) ** 2
        + 90 * (d - c**2) ** 2
        + (1 - c) ** 2
        + 10 * (b + d - 2) ** 2
        + 0.1 * (b - d) ** 2
    )


def _power(x):
    return jnp.sum(indices(x.shape[0]) * x**2) ** 2


def _quartc(x):
    return jnp.sum((x - indices(x.shape[0])) ** 4)


def _cosine(x):
    return jnp.sum(jnp.cos(-0.5 * x[1:] + x[:-1] ** 2))


def _bdqrtic(x):
    a, b, c, d = x[:-4], x[1:-3], x[2:-2], x[3:-1]
    inner = a**2 + 2 * b**2 + 3 * c**2 + 4 * d**2 + 5 * x[-1] ** 2
    return jnp.sum((3 - 4 * a) ** 2 + inner**2)


def _sinquad(x):
    middle = jnp.sin(x[1:-1] - x[-1]) - x[0] ** 2 + x[1:-1] ** 2
    return (x[0] - 1) ** 4 + jnp.sum(middle**2) + (x[-1] ** 2 - x[0] ** 2) ** 2


def _tointgss(x):
    n = x.shape[0]
    gauss = jnp.exp(-((x[:-2] - x[1:-1]) ** 2) / (0.1 + x[2:] ** 2))
    return jnp.sum((10 / n + x[2:] ** 2) * (2 - gauss))


def _schmvett(x):
    a, b, c = x[:-2], x[1:-1], x[2:]
    return -jnp.sum(
        1 / (1 + (a - b) ** 2)
        + jnp.sin((np.pi * b + c) / 2)
        + jnp.exp(-(((a + c) / b - 2) ** 2))
    )


def _vareigvl(x):
    n = x.shape[0]
    i = indices(n)
    # The matrix is diag(i) plus a smooth rank-one coupling, as in CUTE's parameters.
    quadratic = jnp.sum(i * x**2) + jnp.sum(jnp.sin(i) * x) ** 2 / n
    norm = jnp.sum(x**2)
    return quadratic + norm**2 / 4 - jnp.sum(x)


def _dixmaan(alpha, beta, gamma, delta, powers):
    def fun(x):
        n = x.shape[0]
        m = n // 3
        i = indices(n) / n
        k1, k2, k3, k4 = powers
        return (
            1
            + jnp.sum(alpha * x**2 * i**k1)
            + jnp.sum(beta * x[:-1] ** 2 * (x[1:] + x[1:] ** 2) ** 2 * i[: n - 1] ** k2)
            + jnp.sum(gamma * x[: 2 * m] ** 2 * x[m:] ** 4 * i[: 2 * m] ** k3)
            + jnp.sum(delta * x[:m] * x[2 * m :] * i[:m] ** k4)
        )

    return fun


def _minimal_surface(side):
    edge = np.linspace(0, 1, side + 2)
    border = np.zeros((side + 2, side + 2))
    border[0, :] = 1 + 4 * edge
    border[-1, :] = 5 + 6 * edge
    border[:, 0] = 1 + 4 * edge
    border[:, -1] = 5 + 6 * edge

    def fun(x):
        z = jnp.asarray(border).at[1:-1, 1:-1].set(x.reshape(side, side))
        main = z[1:, 1:] - z[:-1, :-1]
        cross = z[1:, :-1] - z[:-1, 1:]
        scale = (side + 1) ** 2
        return jnp.sum(jnp.sqrt(1 + scale * (main**2 + cross**2) / 2)) / scale

    return fun


def _matrix_square_root(side):
    root = np.sin(indices(side * side) ** 2).reshape(side, side)
    target = root @ root

    def fun(x):
        return jnp.sum((x.reshape(side, side) @ x.reshape(side, side) - target) ** 2)

    start = root - 0.8 * np.sin(indices(side * side) ** 2).reshape(side, side)
    return fun, start.ravel()


def _eigen_decomposition(side):
    matrix = np.diag(indices(side))

    def fun(x):
        values, vectors = x[:side], x[side:].reshape(side, side)
        fit = vectors.T @ (values[:, None] * vectors) - matrix
        orthogonal = vectors.T @ vectors - jnp.eye(side)
        return jnp.sum(fit**2) + jnp.sum(orthogonal**2)

    return fun, np.concatenate([np.ones(side), np.eye(side).ravel()])


def problems() -> list[Problem]:
    """Scalable problems of the CUTE collection."""
    square_root, square_root_start = _matrix_square_root(20)
    eigen, eigen_start = _eigen_decomposition(10)
    quarter = 1 / 8
    entries = [
        ("arwhead_1000", _arwhead, np.ones(1000)),
        ("dqdrtic_5000", _dqdrtic, np.full(5000, 3.0)),
        ("liarwhd_1000", _liarwhd, np.full(1000, 4.0)),
        ("engval1_1000", _engval1, np.full(1000, 2.0)),
        ("edensch_2000", _edensch, np.zeros(2000)),
        ("tridia_1000", _tridia, np.ones(1000)),
        ("dixon3dq_1000", _dixon3dq, np.full(1000, -1.0)),
        ("nondquar_100", _nondquar, np.tile([1.0, -1.0], 50)),
        ("cragglvy_1000", _cragglvy, np.concatenate([[1.0], np.full(999, 2.0)])),
        ("genrose_500", _genrose, indices(500) / 501),
        ("fletchcr_200", _fletchcr, np.zeros(200)),
        (
            "chainwoo_1000",
            _chainwoo,
            np.concatenate([[-3.0, -1, -3, -1], np.tile([-2.0, 0.0], 498)]),
        ),
        ("wood_1000", least_squares(wood), np.tile([-3.0, -1.0], 500)),
        ("power_1000", _power, np.ones(1000)),
        ("quartc_1000", _quartc, np.full(1000, 2.0)),
        ("cosine_1000", _cosine, np.ones(1000)),
        ("bdqrtic_1000", _bdqrtic, np.ones(1000)),
        ("sinquad_100", _sinquad, np.full(100, 0.1)),
        ("tointgss_1000", _tointgss, np.full(1000, 3.0)),
        ("schmvett_1000", _schmvett, np.full(1000, 0.5)),
        ("vareigvl_500", _vareigvl, np.ones(500)),
        (
            "dixmaana_3000",
            _dixmaan(1, 0, quarter, quarter, (0, 0, 0, 0)),
            np.full(3000, 2.0),
        ),
        (
            "dixmaanf_3000",
            _dixmaan(1, 1 / 16, 1 / 16, 1 / 16, (1, 0, 0, 1)),
            np.full(3000, 2.0),
        ),
        (
            "dixmaanj_3000",
            _dixmaan(1, 1 / 16, 1 / 16, 1 / 16, (2, 0, 0, 2)),
            np.full(3000, 2.0),
        ),
        (
            "dixmaanl_3000",
            _dixmaan(1, 0.26, 0.26, 0.26, (2, 0, 0, 2)),
            np.full(3000, 2.0),
        ),
        ("minimal_surface_30x30", _minimal_surface(30), np.zeros(900)),
        ("matrix_square_root_400", square_root, square_root_start),
        ("eigen_decomposition_110", eigen, eigen_start),
        (
            "rosenbrock_10000",
            least_squares(extended_rosenbrock),
            np.tile([-1.2, 1.0], 5000),
        ),
    ]
    return [Problem(name, "large", fun, start) for name, fun, start in entries]
