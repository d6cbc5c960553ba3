"""Where a line search starts: steps predicted from the last search and from a probe."""

import jax
import jax.numpy as jnp

from optax_nlcg import tree
from optax_nlcg.bracket import Point
from optax_nlcg.tree import Tree


def predict(
    last_step: jax.Array,
    last_slope: jax.Array,
    is_first: jax.Array,
    origin: Point,
    params: Tree,
    updates: Tree,
) -> jax.Array:
    """Predicts the step: as much first-order decrease as in the last search.

    Args:
        last_step: where the last search ended, scalar.
        last_slope: slope that it started with, scalar.
        is_first: whether there was none, bool scalar.
        origin: where this one starts.
        params: the parameters there.
        updates: the step 1.
    """
    dtype = origin.step.dtype
    ratio = jnp.clip(_quotient(last_slope, origin.slope, 1.0), 0.2, 20.0)
    later = last_step * ratio

    # A first step has no scale but that of the parameters, or, if they are zero, the
    # decrease that would bring the loss to minus itself.
    size, length = tree.largest(params, dtype), tree.largest(updates, dtype)
    fall = _quotient(-2 * jnp.abs(origin.value), origin.slope, 0.0)
    first = jnp.where(size > 0, _quotient(0.01 * size, length, 1.0), fall)
    first = jnp.where(first > 0, first, _quotient(1.0, length, 1.0))
    return jnp.where(is_first, first, later)


def of_parabola(origin: Point, step: jax.Array, value: jax.Array) -> jax.Array:
    """Minimiser of the parabola through the origin, its slope and one more value."""
    bend = value - origin.value - step * origin.slope
    minimiser = -origin.slope * step**2 / (2 * jnp.where(bend > 0, bend, 1))
    minimiser = jnp.maximum(minimiser, 1e-10 * step)
    usable = (bend > 0) & jnp.isfinite(minimiser)
    start = jnp.where(usable, minimiser, 2 * step)
    return jnp.where(jnp.isfinite(value), start, 0.1 * step)


def unit_step_error(
    last_error: jax.Array, is_first: jax.Array, origin: Point, end: Point
) -> jax.Array:
    """How far from 1 the lines' minimisers are, as the secant of the slopes has it.

    Args:
        last_error: the running mean so far, in natural logarithms; infinite before the
            second search.
        is_first: whether this was the first search, bool scalar.
        origin: where it started.
        end: where it ended.

    Returns:
        The running mean with this search in it.
    """
    gain = end.slope - origin.slope
    minimiser = jnp.where(
        gain > 0, _quotient(-end.step * origin.slope, gain, 1.0), 10 * end.step
    )
    error = jnp.abs(jnp.log(jnp.minimum(minimiser, 10 * end.step)))
    mean = 0.7 * last_error + 0.3 * error
    # The first step of all tells nothing about the scale of the later ones.
    begun = jnp.where(is_first, jnp.inf, error)
    return jnp.where(jnp.isfinite(last_error), mean, begun)


def _quotient(
    numerator: jax.typing.ArrayLike, denominator: jax.Array, otherwise: float
) -> jax.Array:
    safe = jnp.where(denominator == 0, 1, denominator)
    return jnp.where(denominator == 0, otherwise, numerator / safe)
