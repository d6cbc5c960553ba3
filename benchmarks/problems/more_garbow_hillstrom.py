"""The collection of Moré, Garbow and Hillstrom, with its standard starts.

"Testing Unconstrained Optimization Software", ACM TOMS 7(1), 1981.
"""

import jax.numpy as jnp
import numpy as np

from benchmarks.problems.problem import Problem, indices, least_squares


def _numbers(text):
    return np.array(text.split(), np.float64)


def extended_rosenbrock(x):
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
    i = indices(10)
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
    u = indices(15)
    v = 16 - u
    return _BARD - (x[0] + u / (v * x[1] + np.minimum(u, v) * x[2]))


_GAUSSIAN = _numbers("""
    0.0009 0.0044 0.0175 0.054 0.1295 0.242 0.3521 0.3989
""")
_GAUSSIAN = np.concatenate([_GAUSSIAN, _GAUSSIAN[-2::-1]])


def _gaussian(x):
    t = (8 - indices(15)) / 2
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - _GAUSSIAN


_MEYER = _numbers("""
    34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820
    3307 2872
""")


def _meyer(x):
    t = 45 + 5 * indices(16)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - _MEYER


def _gulf(x):
    t = indices(99) / 100
    y = 25 + (-50 * np.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


def _box(x):
    t = 0.1 * indices(10)
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


def wood(x):
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
    t = indices(20) / 5
    a, b, c, d = x
    return (a + t * b - np.exp(t)) ** 2 + (c + d * np.sin(t) - np.cos(t)) ** 2


_OSBORNE_1 = _numbers("""
    0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.85 0.818 0.784 0.751 0.718 0.685
    0.658 0.628 0.603 0.58 0.558 0.538 0.522 0.506 0.49 0.478 0.467 0.457 0.448
    0.438 0.431 0.424 0.42 0.414 0.411 0.406
""")


def _osborne_1(x):
    t = 10 * (indices(33) - 1)
    return _OSBORNE_1 - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


_OSBORNE_2 = _numbers("""
    1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608
    0.655 0.616 0.606 0.602 0.626 0.651 0.724 0.649 0.649 0.694 0.644 0.624 0.661
    0.612 0.558 0.533 0.495 0.5 0.423 0.395 0.375 0.372 0.391 0.396 0.405 0.428
    0.429 0.523 0.562 0.607 0.653 0.672 0.708 0.633 0.668 0.645 0.632 0.591 0.559
    0.597 0.625 0.739 0.71 0.729 0.72 0.636 0.581 0.428 0.292 0.162 0.098 0.054
""")


def _osborne_2(x):
    t = (indices(65) - 1) / 10
    fit = x[0] * jnp.exp(-t * x[4])
    for k in range(1, 4):
        fit += x[k] * jnp.exp(-((t - x[k + 7]) ** 2) * x[k + 4])
    return _OSBORNE_2 - fit


def _biggs(x):
    t = 0.1 * indices(13)
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    return (
        x[2] * jnp.exp(-t * x[0])
        - x[3] * jnp.exp(-t * x[1])
        + x[5] * jnp.exp(-t * x[4])
        - y
    )


def _watson(x):
    t = indices(29)[:, None] / 29
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
    i = indices(n)
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
    total = jnp.sum(indices(x.shape[0]) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([total, total**2])])


def _trigonometric(x):
    n = x.shape[0]
    cosines = jnp.cos(x)
    return n - jnp.sum(cosines) + indices(n) * (1 - cosines) - jnp.sin(x)


def _brown_almost_linear(x):
    n = x.shape[0]
    return jnp.append(x[:-1] + jnp.sum(x) - (n + 1), jnp.prod(x) - 1)


def _discrete_boundary_value(x):
    n = x.shape[0]
    h = 1 / (n + 1)
    padded = jnp.pad(x, 1)
    cubic = h**2 * (x + h * indices(n) + 1) ** 3 / 2
    return 2 * x - padded[:-2] - padded[2:] + cubic


def _boundary_start(n):
    t = indices(n) / (n + 1)
    return t * (t - 1)


def _discrete_integral(x):
    n = x.shape[0]
    h = 1 / (n + 1)
    t = h * indices(n)
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
    return indices(2 * n) * jnp.sum(indices(n) * x) - 1


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


def problems() -> list[Problem]:
    """The Moré-Garbow-Hillstrom collection, the numbered problems 1 to 35."""

    def tiled(n, *values):
        return np.tile(np.array(values), n // len(values))

    entries = [
        ("rosenbrock", extended_rosenbrock, [-1.2, 1.0]),
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
        ("wood", wood, [-3.0, -1.0, -3.0, -1.0]),
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
        ("rosenbrock_1000", extended_rosenbrock, tiled(1000, -1.2, 1.0)),
        ("powell_singular_1000", _extended_powell, tiled(1000, 3.0, -1.0, 0.0, 1.0)),
        ("penalty_1_10", _penalty_1, indices(10)),
        ("penalty_1_1000", _penalty_1, indices(1000)),
        ("penalty_2_10", _penalty_2, np.full(10, 0.5)),
        ("variably_dimensioned_100", _variably_dimensioned, 1 - indices(100) / 100),
        ("trigonometric_100", _trigonometric, np.full(100, 0.01)),
        ("brown_almost_linear_10", _brown_almost_linear, np.full(10, 0.5)),
        ("boundary_value_50", _discrete_boundary_value, _boundary_start(50)),
        ("integral_equation_100", _discrete_integral, _boundary_start(100)),
        ("broyden_tridiagonal_1000", _broyden_tridiagonal, np.full(1000, -1.0)),
        ("broyden_banded_1000", _broyden_banded, np.full(1000, -1.0)),
        ("linear_full_rank_100", _linear_full_rank, np.ones(100)),
        ("linear_rank_1_10", _linear_rank_1, np.ones(10)),
        ("chebyquad_8", _chebyquad, indices(8) / 9),
    ]
    return [
        Problem(name, "more_garbow_hillstrom", least_squares(r), np.asarray(start))
        for name, r, start in entries
    ]
