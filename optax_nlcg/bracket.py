"""The scalar part of the Hager-Zhang line search: where to try next, and when to stop.

The search is a machine that is fed one trial after another, each with its value and
slope along the line, and answers with the next trial. It holds an interval whose lower
end descends without having risen and whose upper end has turned up, once there is one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Point(NamedTuple):
    """A point on the line: its step, value and slope, real scalars."""

    step: jax.Array
    value: jax.Array
    slope: jax.Array


class Interval(NamedTuple):
    """What the search knows and where it tries next.

    Attributes:
        trial: step to evaluate next.
        low: lower end: its slope is negative and its value not above the ceiling.
        high: upper end: its slope is not negative or its value is above the ceiling;
            its step is infinite while there is none.
        limit: least step known to give no finite value; infinite while there is none.
        secants: how many of the two steps of secant^2 have been proposed, int32.
        width: width of the interval before them.
        collapsed: whether the interval holds no further trial in this precision.
    """

    trial: jax.Array
    low: Point
    high: Point
    limit: jax.Array
    secants: jax.Array
    width: jax.Array
    collapsed: jax.Array


_EXPANSION = 5.0
_EXTRAPOLATION = 100.0
_SHRINKAGE = 0.66


def start(trial: jax.Array, origin: Point) -> Interval:
    """The machine before its first trial, with the origin as lower end."""
    infinity = jnp.full_like(trial, jnp.inf)
    return Interval(
        trial=trial,
        low=origin,
        high=Point(infinity, infinity, infinity),
        limit=infinity,
        secants=jnp.zeros_like(trial, jnp.int32),
        width=infinity,
        collapsed=jnp.zeros_like(trial, bool),
    )


def advance(old: Interval, point: Point, ceiling: jax.Array) -> Interval:
    """Takes in the trial's outcome and proposes the next trial.

    Args:
        old: the machine that proposed the trial.
        point: the trial with its value and slope.
        ceiling: greatest value that the lower end may have.

    Returns:
        The machine with its next trial.

    References:
      Hager & Zhang, `Algorithm 851: CG_DESCENT`, ACM TOMS 32(1), 2006, section 4:
      steps B0-B3 (bracket), U0-U3 (update), S1-S4 (secant^2), L0-L3.
    """
    finite = jnp.isfinite(point.value) & jnp.isfinite(point.slope)
    descends = finite & (point.slope < 0) & (point.value <= ceiling)
    none = Point(*(jnp.full_like(point.step, jnp.inf),) * 3)
    low = _where(descends, point, old.low)
    # An upper end inside of which a trial is not finite bounds nothing; one that the
    # lower end has reached (after the ceiling was raised) neither.
    high = _where(finite & ~descends, point, _where(finite, old.high, none))
    high = _where(high.step <= low.step, none, high)
    limit = jnp.where(finite, old.limit, point.step)
    bracketed = jnp.isfinite(high.step)
    width = high.step - low.step

    # Each rule proposes; the state of the interval decides which proposal counts.
    outside = _expand(old.low, low, limit)
    retreat = low.step + 0.1 * (point.step - low.step)
    rising = _interpolate_values(low, high)
    bisect = (old.secants >= 2) & (width > _SHRINKAGE * old.width)
    second = _second_secant(old, low, high)
    second = jnp.where(old.secants == 1, second, jnp.nan)
    middle = low.step + width / 2
    inside = _first_inside(
        low, high, second, _cubic(low, high), _secant(low, high), middle
    )

    to_secant = bracketed & (high.slope >= 0) & ~bisect
    trial = jnp.where(bisect, middle, inside)
    trial = jnp.where(high.slope < 0, rising, trial)
    trial = jnp.where(bracketed, trial, outside)
    trial = jnp.where(finite, trial, retreat)
    eps = jnp.finfo(trial.dtype).eps
    return Interval(
        trial=trial,
        low=low,
        high=high,
        limit=limit,
        secants=jnp.where(to_secant, old.secants % 2 + 1, 0),
        width=jnp.where(old.secants == 1, old.width, width),
        collapsed=(bracketed & (width <= 4 * eps * high.step))
        | (trial == low.step)
        | (trial == high.step)
        | ~jnp.isfinite(trial),
    )


def _where(condition: jax.Array, on_true: Point, on_false: Point) -> Point:
    return Point(
        *(jnp.where(condition, *pair) for pair in zip(on_true, on_false, strict=True))
    )


def _expand(previous: Point, low: Point, limit: jax.Array) -> jax.Array:
    """A step beyond a lower end that still descends."""
    # Where the slope was rising towards zero, its zero; otherwise a fixed factor.
    gain = low.slope - previous.slope
    run = low.step - previous.step
    reach = low.step - low.slope * run / jnp.where(gain > 0, gain, 1)
    reach = jnp.clip(reach, 1.1 * low.step, _EXTRAPOLATION * low.step)
    rising = (gain > 0) & (run > 0) & jnp.isfinite(reach)
    step = jnp.where(rising, reach, _EXPANSION * low.step)
    return jnp.where(step < limit, step, low.step + (limit - low.step) / 2)


def _interpolate_values(low: Point, high: Point) -> jax.Array:
    """Minimiser of the parabola through two values and the lower end's slope.

    For an upper end that lies too high although its slope is negative.
    """
    width = high.step - low.step
    bend = high.value - low.value - low.slope * width
    step = -low.slope * width**2 / (2 * jnp.where(bend > 0, bend, 1))
    usable = (bend > 0) & (step >= 0.1 * width) & (step <= 0.5 * width)
    return low.step + jnp.where(usable, step, width / 2)


def _secant(one: Point, other: Point) -> jax.Array:
    """Zero of the slope by the secant through two points; NaN if there is none."""
    change = other.slope - one.slope
    step = one.step * other.slope - other.step * one.slope
    return jnp.where(change == 0, jnp.nan, step / jnp.where(change == 0, 1, change))


def _second_secant(old: Interval, low: Point, high: Point) -> jax.Array:
    """The second step of secant^2: through an end and the end that it replaced."""
    low_moved = low.step != old.low.step
    return jnp.where(low_moved, _secant(low, old.low), _secant(high, old.high))


def _cubic(low: Point, high: Point) -> jax.Array:
    """Minimiser of the cubic through both values and slopes; NaN if there is none."""
    width = high.step - low.step
    first = low.slope + high.slope - 3 * (high.value - low.value) / width
    root = jnp.sqrt(first**2 - low.slope * high.slope)
    return high.step - width * (high.slope + root - first) / (
        high.slope - low.slope + 2 * root
    )


def _first_inside(low: Point, high: Point, *steps: jax.Array) -> jax.Array:
    """The first of the steps that lies strictly inside the interval."""
    chosen = steps[-1]
    for step in reversed(steps[:-1]):
        chosen = jnp.where((step > low.step) & (step < high.step), step, chosen)
    return chosen
