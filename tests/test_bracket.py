"""Where the Wolfe search tries, worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from optax_nlcg import bracket, first_trial
from optax_nlcg.bracket import Point

NONE = (np.inf, np.inf, np.inf)

# Step, value and slope of the lower and of the upper end and of the trial, the secant
# steps so far, and the next trial. The ceiling is 0, the last bisection left a width
# of 4, and 8 is known to be too far.
PROPOSALS = {
    "zero of a rising slope": ((1, -1, -1), NONE, (2, -1.8, -0.5), 0, 3),
    "at least a tenth beyond": ((1, -1, -1), NONE, (2, -1.5, -0.01), 0, 2.2),
    "at most a hundredfold": ((0, 0, -1), NONE, (1 / 64, -0.01, -0.999), 0, 100 / 64),
    "fivefold": ((0, 0, -1), NONE, (1, -2, -2), 0, 5),
    "level with the start": ((0, 0, -1), NONE, (1, 0, -1), 0, 5),
    "half of the way to what is too far": ((1, -1, -1), NONE, (2, -3, -2), 0, 5),
    "a tenth of the way": ((1, -1, -1), NONE, (6, np.inf, np.nan), 0, 1.5),
    "nan": ((1, -1, -1), (7, 1, 1), (6, np.nan, np.nan), 2, 1.5),
    "minus infinity": ((1, -1, -1), (7, 1, 1), (6, -np.inf, 0), 0, 1.5),
    "slope not finite": ((1, -1, -1), (7, 1, 1), (6, -2, -np.inf), 0, 1.5),
    # a^3 / 3 - a, and where its squares overflow.
    "cubic": ((0, 0, -1), NONE, (2, 2 / 3, 3), 0, 1),
    "secant": ((0, 0, -1e200), NONE, (2, 2e200 / 3, 3e200), 0, 0.5),
    # What belongs to no simple function: the next trial is for slopes alone.
    "lower ends": ((0, 0, -2), (4, 1, 5), (1, -1, -1), 1, 2),
    "upper ends": ((0, 0, -2), (4, 1, 5), (3, 0.5, 3), 1, 1.5),
    # a^3 / 3 - 4 a
    "narrowed": ((1, -11 / 3, -3), (5, 65 / 3, 21), (3.5, 7 / 24, 8.25), 2, 2),
    "bisection": ((1, -11 / 3, -3), (5, 65 / 3, 21), (4.5, 12.375, 16.25), 2, 2.75),
    "parabola of values": ((1, 0, -1), NONE, (3, 2, -1), 0, 1.5),
    "half where it is too steep": ((1, 0, -1), NONE, (3, 20, -1), 0, 2),
    "the upper end, now low enough": ((0, 0, -1), (1, 1, -1), (1, -1, -1), 0, 5),
}


@pytest.mark.parametrize("name", PROPOSALS)
def test_next_trial(x64, name):
    low, high, trial, secants, expected = PROPOSALS[name]
    before = bracket.start(jnp.float64(trial[0]), point(*low))._replace(
        high=point(*high),
        limit=jnp.float64(8),
        secants=jnp.int32(secants),
        width=jnp.float64(4),
    )
    after = bracket.advance(before, point(*trial), jnp.float64(0))
    np.testing.assert_allclose(after.trial, expected, rtol=1e-14)
    assert not after.collapsed


def point(*numbers):
    return Point(*map(jnp.asarray, map(float, numbers)))


def test_trials_stay_below_what_is_not_finite(x64):
    search = bracket.start(jnp.float64(7), point(1, -1, -1))
    far = np.inf, np.nan
    # The upper end, at 7, counts no more once 4 is too far.
    outcomes = (-1, 1), far, (-2, -2), far, (-3, -3)
    for outcome, expected in zip(outcomes, (4, 1.3, 2.65, 1.435, 2.0425), strict=True):
        search = bracket.advance(search, point(search.trial, *outcome), jnp.float64(0))
        np.testing.assert_allclose(search.trial, expected, rtol=1e-14)


def test_bisects_where_two_secant_steps_have_not_taken_a_third(x64):
    search = bracket.start(jnp.float64(8), point(0, 0, -2))
    bisected = []
    for high in (8, 6, 5, 4.9, 4.8):
        search = bracket.advance(search, point(high, 1, 1), jnp.float64(0))
        bisected.append(bool(search.trial == high / 2))
    assert bisected == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("params", "updates", "origin", "expected"),
    [
        ([-5.0, 1.0], [0.5, -0.1], (0, 3, -2), 0.1),  # a hundredth of the parameters
        ([0.0, 0.0], [0.5, -0.1], (0, 3, -2), 3),  # the loss becomes minus itself
        ([0.0, 0.0], [0.5, -0.1], (0, -3, -2), 3),
        ([0.0, 0.0], [-4.0, 0.1], (0, 0, -2), 0.25),  # an update of size one
    ],
)
def test_first_step(params, updates, origin, expected):
    got = first_trial.predict(
        jnp.float32(7), jnp.float32(-1), True, point(*origin), params, updates
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("slope", "expected"), [(-1.5, 4), (-1e3, 0.4), (-1e-3, 40), (0, 2)]
)
def test_later_steps_promise_the_decrease_of_the_last(slope, expected):
    got = first_trial.predict(
        jnp.float32(2), jnp.float32(-3), False, point(0, 1, slope), [1.0], [1.0]
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1), (-7, 4), (-9, 4), (1e30, 2e-10), (np.inf, 0.2), (np.nan, 0.2)],
)
def test_start_from_a_probe(value, expected):
    """Of 1 - 4 a + c a^2 at 2."""
    got = first_trial.of_parabola(point(0, 1, -4), jnp.float32(2), jnp.float32(value))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("last", "is_first", "slope", "expected"),
    [
        (np.inf, True, 1, np.inf),
        (np.inf, False, 1, np.log(2)),
        (1, False, 1, 0.7 + 0.3 * np.log(2)),
        (np.inf, False, -3, np.log(30)),  # bent downwards
        (np.inf, False, -1.99, np.log(30)),  # the secant's zero is at 600
        (np.inf, False, 18, np.log(1 / 0.3)),
    ],
)
def test_error_of_the_unit_step(last, is_first, slope, expected):
    got = first_trial.unit_step_error(
        jnp.float32(last), jnp.asarray(is_first), point(0, 1, -2), point(3, 0, slope)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)
