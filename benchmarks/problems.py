"""Smooth unconstrained test problems for the full-batch solvers.

Each problem is a function of one vector, written with `jax.numpy`, and a standard
starting point. The sets:

- `more_garbow_hillstrom`: the collection of Moré, Garbow and Hillstrom, "Testing
  Unconstrained Optimization Software", ACM TOMS 7(1), 1981, with its numbering.
- `large`: scalable problems from the CUTE collection (Bongartz et al., ACM TOMS
  21(1), 1995), 100 to 10,000 variables.
- `data`: regressions, classifiers, a matrix factorisation, a network and two
  discretised partial differential equations.
- `quadratic`: quadratics of known spectrum, some with the diagonal that
  preconditions them.

Functions take any float dtype; constants are NumPy float64 and become weakly typed
nowhere, so run them with 64-bit types enabled to reproduce the published optima.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """A function to minimise.

    Attributes:
      name: Unique name, with the number of variables where it is a choice.
      group: The set it belongs to.
      fun: Function of a vector of shape [n], to a scalar.
      start: Starting point, float64, shape [n].
      diagonal: Diagonal of the Hessian, shape [n], where it is a known constant and
        the problem is meant to be preconditioned with it; else None.
    """

    name: str
    group: str
    fun: Callable[[jax.Array], jax.Array]
    start: np.ndarray
    diagonal: np.ndarray | None = None


def _least_squares(residuals):
    return lambda x: jnp.sum(residuals(x) ** 2)


def _numbers(text):
    return np.array(text.split(), np.float64)


def _indices(n):
    return np.arange(1, n + 1, dtype=np.float64)


# --- Moré, Garbow, Hillstrom -------------------------------------------------------


def _extended_rosenbrock(x):
    a, b = x[0::2], x[1::2]
    return jnp.concatenate([10 * (b - a**2), 1 - a])


def _freudenstein_roth(x):
    a, b = x
    return jnp.stack(
        [-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b]
    )


def _powell_badly_scaled(x):
    a, b = x
    return jnp.stack([1e4 * a * b - 1, jnp.exp(-a) + jnp.exp(-b) - 1.0001])


def _brown_badly_scaled(x):
    a, b = x
    return jnp.stack([a - 1e6, b - 2e-6, a * b - 2])


def _beale(x):
    a, b = x
    powers = np.array([1.0, 2.0, 3.0])
    return np.array([1.5, 2.25, 2.625]) - a * (1 - b**powers)


def _jennrich_sampson(x):
    i = _indices(10)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def _helical_valley(x):
    a, b, c = x
    # atan2(b, a) / 2 pi is the published theta up to a period that no path crosses.
    theta = jnp.arctan(b / a) / (2 * np.pi) + jnp.where(a < 0, 0.5, 0.0)
    return jnp.stack([10 * (c - 10 * theta), 10 * (jnp.hypot(a, b) - 1), c])


_BARD = _numbers("""
    0.14 0.18 0.22 0.25 0.29 0.32 0.35 0.39 0.37 0.58 0.73 0.96 1.34 2.1 4.39
""")


def _bard(x):
    u = _indices(15)
    v = 16 - u
    return _BARD - (x[0] + u / (v * x[1] + np.minimum(u, v) * x[2]))


_GAUSSIAN = _numbers("""
    0.0009 0.0044 0.0175 0.054 0.1295 0.242 0.3521 0.3989
""")
_GAUSSIAN = np.concatenate([_GAUSSIAN, _GAUSSIAN[-2::-1]])


def _gaussian(x):
    t = (8 - _indices(15)) / 2
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - _GAUSSIAN


_MEYER = _numbers("""
    34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820
    3307 2872
""")


def _meyer(x):
    t = 45 + 5 * _indices(16)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - _MEYER


def _gulf(x):
    t = _indices(99) / 100
    y = 25 + (-50 * np.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


def _box(x):
    t = 0.1 * _indices(10)
    return (
        jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t))
    )


def _extended_powell(x):
    a, b, c, d = x[0::4], x[1::4], x[2::4], x[3::4]
    return jnp.concatenate(
        [
            a + 10 * b,
            np.sqrt(5) * (c - d),
            (b - 2 * c) ** 2,
            np.sqrt(10) * (a - d) ** 2,
        ]
    )


def _wood(x):
    a, b, c, d = x[0::4], x[1::4], x[2::4], x[3::4]
    return jnp.concatenate(
        [
            10 * (b - a**2),
            1 - a,
            np.sqrt(90) * (d - c**2),
            1 - c,
            np.sqrt(10) * (b + d - 2),
            (b - d) / np.sqrt(10),
        ]
    )


_KOWALIK_Y = _numbers("""
    0.1957 0.1947 0.1735 0.16 0.0844 0.0627 0.0456 0.0342 0.0323 0.0235 0.0246
""")
_KOWALIK_U = _numbers("""
    4 2 1 0.5 0.25 0.167 0.125 0.1 0.0833 0.0714 0.0625
""")


def _kowalik_osborne(x):
    u = _KOWALIK_U
    return _KOWALIK_Y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def _brown_dennis(x):
    t = _indices(20) / 5
    a, b, c, d = x
    return (a + t * b - np.exp(t)) ** 2 + (c + d * np.sin(t) - np.cos(t)) ** 2


_OSBORNE_1 = _numbers("""
    0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.85 0.818 0.784 0.751 0.718 0.685
    0.658 0.628 0.603 0.58 0.558 0.538 0.522 0.506 0.49 0.478 0.467 0.457 0.448
    0.438 0.431 0.424 0.42 0.414 0.411 0.406
""")


def _osborne_1(x):
    t = 10 * (_indices(33) - 1)
    return _OSBORNE_1 - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


_OSBORNE_2 = _numbers("""
    1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608
    0.655 0.616 0.606 0.602 0.626 0.651 0.724 0.649 0.649 0.694 0.644 0.624 0.661
    0.612 0.558 0.533 0.495 0.5 0.423 0.395 0.375 0.372 0.391 0.396 0.405 0.428
    0.429 0.523 0.562 0.607 0.653 0.672 0.708 0.633 0.668 0.645 0.632 0.591 0.559
    0.597 0.625 0.739 0.71 0.729 0.72 0.636 0.581 0.428 0.292 0.162 0.098 0.054
""")


def _osborne_2(x):
    t = (_indices(65) - 1) / 10
    fit = x[0] * jnp.exp(-t * x[4])
    for k in range(1, 4):
        fit += x[k] * jnp.exp(-((t - x[k + 7]) ** 2) * x[k + 4])
    return _OSBORNE_2 - fit


def _biggs(x):
    t = 0.1 * _indices(13)
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    return (
        x[2] * jnp.exp(-t * x[0])
        - x[3] * jnp.exp(-t * x[1])
        + x[5] * jnp.exp(-t * x[4])
        - y
    )


def _watson(x):
    t = _indices(29)[:, None] / 29
    powers = np.arange(x.shape[0])
    basis = t**powers
    slopes = np.concatenate(
        [np.zeros((29, 1)), powers[1:] * t ** (powers[1:] - 1)], axis=1
    )
    body = slopes @ x - (basis @ x) ** 2 - 1
    return jnp.concatenate([body, x[:1], x[1:2] - x[:1] ** 2 - 1])


def _penalty_1(x):
    return jnp.append(np.sqrt(1e-5) * (x - 1), jnp.sum(x**2) - 0.25)


def _penalty_2(x):
    n = x.shape[0]
    i = _indices(n)
    y = np.exp(i[1:] / 10) + np.exp(i[:-1] / 10)
    exps = jnp.exp(x / 10)
    return jnp.concatenate(
        [
            x[:1] - 0.2,
            np.sqrt(1e-5) * (exps[1:] + exps[:-1] - y),
            np.sqrt(1e-5) * (exps[1:] - np.exp(-0.1)),
            jnp.sum((n - i + 1) * x**2)[None] - 1,
        ]
    )


def _variably_dimensioned(x):
    total = jnp.sum(_indices(x.shape[0]) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([total, total**2])])


def _trigonometric(x):
    n = x.shape[0]
    cosines = jnp.cos(x)
    return n - jnp.sum(cosines) + _indices(n) * (1 - cosines) - jnp.sin(x)


def _brown_almost_linear(x):
    n = x.shape[0]
    return jnp.append(x[:-1] + jnp.sum(x) - (n + 1), jnp.prod(x) - 1)


def _discrete_boundary_value(x):
    n = x.shape[0]
    h = 1 / (n + 1)
    padded = jnp.pad(x, 1)
    cubic = h**2 * (x + h * _indices(n) + 1) ** 3 / 2
    return 2 * x - padded[:-2] - padded[2:] + cubic


def _boundary_start(n):
    t = _indices(n) / (n + 1)
    return t * (t - 1)


def _discrete_integral(x):
    n = x.shape[0]
    h = 1 / (n + 1)
    t = h * _indices(n)
    cubic = (x + t + 1) ** 3
    below = jnp.cumsum(t * cubic)
    above = jnp.sum((1 - t) * cubic) - jnp.cumsum((1 - t) * cubic)
    return x + h * ((1 - t) * below + t * above) / 2


def _broyden_tridiagonal(x):
    padded = jnp.pad(x, 1)
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


def _broyden_banded(x):
    n = x.shape[0]
    padded = jnp.pad(x * (1 + x), (5, 1))
    around = sum(padded[k : k + n] for k in range(7) if k != 5)
    return x * (2 + 5 * x**2) + 1 - around


def _linear_full_rank(x):
    m = 2 * x.shape[0]
    mean = 2 * jnp.sum(x) / m
    return jnp.concatenate([x - mean - 1, jnp.full(m - x.shape[0], -mean - 1)])


def _linear_rank_1(x):
    n = x.shape[0]
    return _indices(2 * n) * jnp.sum(_indices(n) * x) - 1


def _chebyquad(x):
    n = x.shape[0]
    shifted = 2 * x - 1
    previous, current = jnp.ones_like(x), shifted
    residuals = []
    for i in range(1, n + 1):
        integral = 0.0 if i % 2 else -1 / (i**2 - 1)
        residuals.append(jnp.mean(current) - integral)
        previous, current = current, 2 * shifted * current - previous
    return jnp.stack(residuals)


def more_garbow_hillstrom() -> list[Problem]:
    """The Moré-Garbow-Hillstrom collection, the numbered problems 1 to 35."""

    def tiled(n, *values):
        return np.tile(np.array(values), n // len(values))

    entries = [
        ("rosenbrock", _extended_rosenbrock, [-1.2, 1.0]),
        ("freudenstein_roth", _freudenstein_roth, [0.5, -2.0]),
        ("powell_badly_scaled", _powell_badly_scaled, [0.0, 1.0]),
        ("brown_badly_scaled", _brown_badly_scaled, [1.0, 1.0]),
        ("beale", _beale, [1.0, 1.0]),
        ("jennrich_sampson", _jennrich_sampson, [0.3, 0.4]),
        ("helical_valley", _helical_valley, [-1.0, 0.0, 0.0]),
        ("bard", _bard, [1.0, 1.0, 1.0]),
        ("gaussian", _gaussian, [0.4, 1.0, 0.0]),
        ("meyer", _meyer, [0.02, 4000.0, 250.0]),
        ("gulf", _gulf, [5.0, 2.5, 0.15]),
        ("box", _box, [0.0, 10.0, 20.0]),
        ("powell_singular", _extended_powell, [3.0, -1.0, 0.0, 1.0]),
        ("wood", _wood, [-3.0, -1.0, -3.0, -1.0]),
        ("kowalik_osborne", _kowalik_osborne, [0.25, 0.39, 0.415, 0.39]),
        ("brown_dennis", _brown_dennis, [25.0, 5.0, -5.0, -1.0]),
        ("osborne_1", _osborne_1, [0.5, 1.5, -1.0, 0.01, 0.02]),
        ("biggs_exp6", _biggs, [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]),
        (
            "osborne_2",
            _osborne_2,
            [1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5],
        ),
        ("watson_6", _watson, np.zeros(6)),
        ("watson_9", _watson, np.zeros(9)),
        ("rosenbrock_1000", _extended_rosenbrock, tiled(1000, -1.2, 1.0)),
        ("powell_singular_1000", _extended_powell, tiled(1000, 3.0, -1.0, 0.0, 1.0)),
        ("penalty_1_10", _penalty_1, _indices(10)),
        ("penalty_1_1000", _penalty_1, _indices(1000)),
        ("penalty_2_10", _penalty_2, np.full(10, 0.5)),
        ("variably_dimensioned_100", _variably_dimensioned, 1 - _indices(100) / 100),
        ("trigonometric_100", _trigonometric, np.full(100, 0.01)),
        ("brown_almost_linear_10", _brown_almost_linear, np.full(10, 0.5)),
        ("boundary_value_50", _discrete_boundary_value, _boundary_start(50)),
        ("integral_equation_100", _discrete_integral, _boundary_start(100)),
        ("broyden_tridiagonal_1000", _broyden_tridiagonal, np.full(1000, -1.0)),
        ("broyden_banded_1000", _broyden_banded, np.full(1000, -1.0)),
        ("linear_full_rank_100", _linear_full_rank, np.ones(100)),
        ("linear_rank_1_10", _linear_rank_1, np.ones(10)),
        ("chebyquad_8", _chebyquad, _indices(8) / 9),
    ]
    return [
        Problem(name, "more_garbow_hillstrom", _least_squares(r), np.asarray(start))
        for name, r, start in entries
    ]


# --- scalable problems -------------------------------------------------------------


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
    weights = _indices(x.shape[0])[1:]
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
    return jnp.sum(_indices(x.shape[0]) * x**2) ** 2


def _quartc(x):
    return jnp.sum((x - _indices(x.shape[0])) ** 4)


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
    i = _indices(n)
    # The matrix is diag(i) plus a smooth rank-one coupling, as in CUTE's parameters.
    quadratic = jnp.sum(i * x**2) + jnp.sum(jnp.sin(i) * x) ** 2 / n
    norm = jnp.sum(x**2)
    return quadratic + norm**2 / 4 - jnp.sum(x)


def _dixmaan(alpha, beta, gamma, delta, powers):
    def fun(x):
        n = x.shape[0]
        m = n // 3
        i = _indices(n) / n
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
    root = np.sin(_indices(side * side) ** 2).reshape(side, side)
    target = root @ root

    def fun(x):
        return jnp.sum((x.reshape(side, side) @ x.reshape(side, side) - target) ** 2)

    start = root - 0.8 * np.sin(_indices(side * side) ** 2).reshape(side, side)
    return fun, start.ravel()


def _eigen_decomposition(side):
    matrix = np.diag(_indices(side))

    def fun(x):
        values, vectors = x[:side], x[side:].reshape(side, side)
        fit = vectors.T @ (values[:, None] * vectors) - matrix
        orthogonal = vectors.T @ vectors - jnp.eye(side)
        return jnp.sum(fit**2) + jnp.sum(orthogonal**2)

    return fun, np.concatenate([np.ones(side), np.eye(side).ravel()])


def large() -> list[Problem]:
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
        ("genrose_500", _genrose, _indices(500) / 501),
        ("fletchcr_200", _fletchcr, np.zeros(200)),
        (
            "chainwoo_1000",
            _chainwoo,
            np.concatenate([[-3.0, -1, -3, -1], np.tile([-2.0, 0.0], 498)]),
        ),
        ("wood_1000", _least_squares(_wood), np.tile([-3.0, -1.0], 500)),
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
            _least_squares(_extended_rosenbrock),
            np.tile([-1.2, 1.0], 5000),
        ),
    ]
    return [Problem(name, "large", fun, start) for name, fun, start in entries]


# --- problems with data ------------------------------------------------------------


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


def data() -> list[Problem]:
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


# --- quadratics --------------------------------------------------------------------


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


def quadratic() -> list[Problem]:
    """Quadratics of known spectrum; `diagonal` where a diagonal preconditions them."""
    entries = [
        ("quadratic_1e2_300", *_quadratic(300, 1e2, 0)),
        ("quadratic_1e4_300", *_quadratic(300, 1e4, 1)),
        ("quadratic_1e6_100", *_quadratic(100, 1e6, 2)),
        ("scaled_quadratic_1e4_200", *_badly_scaled_quadratic(200, 4, 3)),
        ("scaled_quadratic_1e6_200", *_badly_scaled_quadratic(200, 6, 4)),
    ]
    return [Problem(name, "quadratic", *entry) for name, *entry in entries]


def all_problems() -> list[Problem]:
    """Every problem, in a fixed order."""
    return more_garbow_hillstrom() + large() + data() + quadratic()
