"""The Hager-Zhang line search: Wolfe conditions to the last digit of the loss."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import arguments, bracket, first_trial, tree
from optax_nlcg.bracket import Point
from optax_nlcg.tree import Tree


class SearchOutcome(enum.IntEnum):
    """Why a line search stopped.

    Attributes:
        NOT_STARTED: there has been no search yet.
        WOLFE: the Wolfe conditions hold.
        APPROXIMATE_WOLFE: the approximate Wolfe conditions hold.
        BEST_OF_TRIALS: no trial met the conditions; the best one was taken.
        NO_PROGRESS: no trial was below the start; the update is zero.
        NO_DESCENT: the direction does not descend; the update is zero.
        NOT_FINITE: value, slope or direction is not finite; the update is zero.
    """

    NOT_STARTED = 0
    WOLFE = 1
    APPROXIMATE_WOLFE = 2
    BEST_OF_TRIALS = 3
    NO_PROGRESS = 4
    NO_DESCENT = 5
    NOT_FINITE = 6


class HagerZhangLineSearchState(NamedTuple):
    """State of :func:`scale_by_hager_zhang_line_search`.

    Scalars have the widest real dtype of the parameters, at least float32.

    Attributes:
        count: number of searches that moved, int32 scalar.
        num_skipped: number of searches that were given a value, a gradient or an
            update that was not finite, int32 scalar.
        step: step of the last search that moved, in units of the update it was given.
        slope: slope that search started with, negative.
        value: loss where the last search ended; infinite before the first, and where
            value or gradient were not finite, so that
            :func:`optax_nlcg.value_and_grad_from_state` computes it.
        grad: gradient there, like the parameters, as :func:`jax.grad` returns it.
        value_scale: running mean of the loss's magnitude, the scale of its rounding.
        value_weight: sum of the weights in that mean.
        approximate: whether the approximate Wolfe conditions are in use, bool.
        unit_step_error: running mean of how far the line's minimisers were from the
            step 1, in natural logarithms; infinite before the second search.
        num_evaluations: values plus gradients computed by the last search, int32.
        outcome: a :class:`SearchOutcome`, int32.
    """

    count: jax.typing.ArrayLike
    num_skipped: jax.typing.ArrayLike
    step: jax.Array
    slope: jax.Array
    value: jax.Array
    grad: Tree
    value_scale: jax.Array
    value_weight: jax.Array
    approximate: jax.Array
    unit_step_error: jax.Array
    num_evaluations: jax.Array
    outcome: jax.Array


class _Search(NamedTuple):
    """The state of one search: the interval, and the best or accepted point so far."""

    interval: bracket.Interval
    kept: Point
    kept_grad: Tree
    tolerance: jax.Array
    num_widened: jax.Array
    num_evaluations: jax.Array
    outcome: jax.Array


def scale_by_hager_zhang_line_search(
    sufficient_decrease: float = 0.1,
    curvature: float = 0.9,
    value_error: float = 1e-6,
    unit_step_tolerance: float = 0.0,
    max_trials: int = 30,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the update to a step that satisfies the Wolfe conditions.

    Along :math:`\phi(a) = f(x + a u)`, with :math:`u` the update and
    :math:`\delta, \sigma` the first two arguments, it looks for

    .. math::

        \phi(a) - \phi(0) \le \delta a \phi'(0), \qquad
        \phi'(a) \ge \sigma \phi'(0).

    Near a minimum the first of these drowns in the rounding of :math:`f`. Once the loss
    changes by less than a thousandth the search also accepts its equivalent in slopes,

    .. math::

        (2\delta - 1) \phi'(0) \ge \phi'(a) \ge \sigma \phi'(0), \qquad
        \phi(a) \le \phi(0) + \epsilon C,

    with :math:`C` a running mean of :math:`|f|`, and reaches gradients near the
    precision of the arithmetic instead of its square root.

    The search first probes the value alone at a step predicted from the last one, and
    starts at the minimiser of the parabola through it. It then brackets by expansion,
    and narrows by cubic and secant steps and by bisection. A trial that is not finite
    moves it back towards the start. Trials, values and gradients, are computed at one
    place in one loop, so that a compiled program holds the loss's gradient once.

    Place it last in a chain: ``update`` takes a descent update and returns the step to
    add. Its state holds the value and the gradient where it ended, for
    :func:`optax_nlcg.value_and_grad_from_state` (or Optax's, where the loss has the
    dtype of the state's scalars). Extra arguments it does not know are ignored; the
    loss is called as ``value_fn(params)``.

    Args:
        sufficient_decrease: :math:`\delta`, in (0, 0.5).
        curvature: :math:`\sigma`, at least ``sufficient_decrease`` and below 1. Smaller
            is more exact.
        value_error: :math:`\epsilon`, rounding error of the loss relative to its
            magnitude; at least ten units of the last place are assumed.
        unit_step_tolerance: where minimisers have of late been so close to the step 1,
            in natural logarithms, the search starts there without probing. 0: never.
            Quasi-Newton updates are scaled to unit steps and gain by 0.5; conjugate
            directions are not, and their conjugacy needs exact steps.
        max_trials: most trials per search, each a value and a gradient.

    Returns:
        The transformation. ``update`` needs ``params``, ``value``, ``grad`` and
        ``value_fn``; ``grad`` is what :func:`jax.grad` returns, so that of complex
        parameters is not conjugated as ``updates`` are. The state holds one copy of the
        parameters.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if an argument has the wrong type.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return 100 * (x[1] - x[0]**2)**2 + (1 - x[0])**2
        >>> solver = optax.chain(
        ...     optax_nlcg.scale_by_conjugate_direction(beta_rule="hager_zhang"),
        ...     optax.scale(-1.0),
        ...     optax_nlcg.scale_by_hager_zhang_line_search(),
        ... )
        >>> value_and_grad = optax_nlcg.value_and_grad_from_state(f)
        >>> @jax.jit
        ... def step(x, state):
        ...     value, grad = value_and_grad(x, state=state)
        ...     updates, state = solver.update(
        ...         grad, state, x, value=value, grad=grad, value_fn=f
        ...     )
        ...     return optax.apply_updates(x, updates), state
        >>> x = jnp.array([-1.2, 1.0])
        >>> state = solver.init(x)
        >>> for _ in range(50):
        ...     x, state = step(x, state)
        >>> bool(jnp.allclose(x, 1.0, atol=1e-2))
        True

    References:
        Hager & Zhang, `Algorithm 851: CG_DESCENT, a conjugate gradient method with
        guaranteed descent <https://doi.org/10.1145/1132973.1132979>`_, ACM TOMS 2006,
        section 4; the probe is their QuadStep.
    """
    arguments.check_number(
        "sufficient_decrease",
        sufficient_decrease,
        low=0,
        high=0.5,
        low_open=True,
        high_open=True,
    )
    known = not isinstance(sufficient_decrease, jax.Array)
    arguments.check_number(
        "curvature",
        curvature,
        low=float(sufficient_decrease) if known else 0,
        high=1,
        high_open=True,
    )
    arguments.check_number("value_error", value_error, low=0)
    arguments.check_number("unit_step_tolerance", unit_step_tolerance, low=0)
    arguments.check_number("max_trials", max_trials, low=1, integer=True)
    stage = "scale_by_hager_zhang_line_search"
    call = "update(..., value=value, grad=grad, value_fn=loss)"

    def init_fn(params: Tree) -> Tree:
        dtype = tree.scalar_dtype(params)
        return HagerZhangLineSearchState(
            count=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
            step=jnp.zeros((), dtype),
            slope=jnp.zeros((), dtype),
            value=jnp.full((), jnp.inf, dtype),
            grad=tree.full_like(params, 0),
            value_scale=jnp.zeros((), dtype),
            value_weight=jnp.zeros((), dtype),
            approximate=jnp.zeros((), bool),
            unit_step_error=jnp.full((), jnp.inf, dtype),
            num_evaluations=jnp.zeros((), jnp.int32),
            outcome=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        grad: Tree = None,
        value_fn: Callable[[Tree], jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, Tree]:
        del extra_args
        for name, argument, what in (
            ("params", params, "the parameters"),
            ("value", value, "the loss at the parameters"),
            ("grad", grad, "its gradient there"),
            ("value_fn", value_fn, "the loss as a function of the parameters"),
        ):
            arguments.require(stage, name, argument, what=what, how=call)
        arguments.check_loss(stage, value)
        arguments.check_whole(stage, params)
        arguments.check_kind_of_state(stage, state, HagerZhangLineSearchState)
        tree.check_match(updates, state.grad, stage=stage)
        assert value_fn is not None
        dtype = state.step.dtype
        value = jnp.asarray(value).astype(dtype)
        # Of the loss itself: `value` may have been cast since.
        loss_like = jax.eval_shape(value_fn, params)
        arguments.check_loss_function(stage, loss_like)
        rounding = 10 * float(jnp.finfo(loss_like.dtype).eps)

        def scaled(step):
            # In the dtype of the parameters: what is tried is what is returned.
            return tree.cast_like(optax.tree.scale(step, updates), params)

        def at(step):
            return optax.apply_updates(params, scaled(step))

        def slope_of(gradient):
            pairs = [(jax.tree.map(jnp.conj, gradient), updates)]
            return tree.inner_products(pairs, dtype)[0]

        slope = slope_of(grad)
        # Zeros like it, here and in the search: under `vmap` on an explicit mesh the
        # loop must begin with what is laid out as it will be.
        origin = Point(jnp.zeros_like(slope), value, slope)
        # It may be wider than the parameters; the state is not.
        grad = tree.cast_like(grad, state.grad)
        weight = 1 + 0.7 * state.value_weight
        scale = state.value_scale + (jnp.abs(value) - state.value_scale) / weight
        finite = jnp.isfinite(value) & jnp.isfinite(slope)
        starts = finite & (slope < 0)

        # Where to start: the unit step if it has been right of late, else the minimiser
        # of a parabola through a probe of the value.
        predicted = first_trial.predict(
            state.step, state.slope, state.count == 0, origin, params, updates
        )
        unit_step = state.unit_step_error < unit_step_tolerance
        visible = jnp.abs(predicted * slope) > 1e4 * rounding * jnp.abs(value)
        probes = starts & ~unit_step & visible
        probed = jax.lax.cond(
            probes,
            lambda: jnp.asarray(value_fn(at(predicted))).astype(dtype),
            lambda: value,  # not used, and no NaN: `jax_debug_nans` would stop here
        )
        first = jnp.where(
            probes, first_trial.of_parabola(origin, predicted, probed), predicted
        )
        first = jnp.where(unit_step, 1, first)

        def accepted(point, tolerance):
            curved = point.slope >= curvature * slope
            drop = sufficient_decrease * point.step * slope
            # A decrease too small for the loss's precision cannot be told from noise.
            resolved = jnp.abs(drop) > rounding * jnp.abs(value)
            wolfe = curved & (point.value - value <= drop) & resolved
            near = curved & (point.slope <= (2 * sufficient_decrease - 1) * slope)
            near &= point.value <= value + tolerance
            return wolfe, near & (state.approximate | ~resolved)

        def unfinished(search):
            return search.outcome == SearchOutcome.NOT_STARTED

        def evaluate(search):
            step = search.interval.trial
            trial_value, trial_grad = jax.value_and_grad(value_fn)(at(step))
            point = Point(
                step, jnp.asarray(trial_value).astype(dtype), slope_of(trial_grad)
            )
            ok = jnp.isfinite(point.value) & jnp.isfinite(point.slope)
            wolfe, near = accepted(point, search.tolerance)
            done = ok & (wolfe | near)
            keep = done | (ok & (point.value < search.kept.value))
            interval = bracket.advance(search.interval, point, value + search.tolerance)
            # A bracket without an acceptable point: the loss is rougher than assumed.
            # Allow ten times the error and try its flatter end once more.
            widen = interval.collapsed & (search.num_widened < 5)
            low, high = interval.low, interval.high
            flatter = jnp.where(
                jnp.abs(low.slope) < jnp.abs(high.slope), low.step, high.step
            )
            interval = interval._replace(
                trial=jnp.where(widen, flatter, interval.trial)
            )
            trials = search.num_evaluations + 2
            stop = (interval.collapsed & ~widen) | (trials >= 2 * max_trials)
            kept = tree.select(keep, point, search.kept)
            outcome = jnp.where(
                stop,
                jnp.where(
                    kept.step > 0,
                    SearchOutcome.BEST_OF_TRIALS,
                    SearchOutcome.NO_PROGRESS,
                ),
                SearchOutcome.NOT_STARTED,
            )
            outcome = jnp.where(ok & near, SearchOutcome.APPROXIMATE_WOLFE, outcome)
            outcome = jnp.where(ok & wolfe, SearchOutcome.WOLFE, outcome)
            return _Search(
                interval=interval,
                kept=kept,
                kept_grad=tree.select(keep, trial_grad, search.kept_grad),
                tolerance=jnp.where(widen, 10 * search.tolerance, search.tolerance),
                num_widened=search.num_widened + widen.astype(jnp.int32),
                num_evaluations=trials,
                outcome=outcome.astype(jnp.int32),
            )

        failure = jnp.where(finite, SearchOutcome.NO_DESCENT, SearchOutcome.NOT_FINITE)
        search = jax.lax.while_loop(
            unfinished,
            evaluate,
            _Search(
                interval=bracket.start(first, origin),
                kept=origin,
                kept_grad=grad,
                tolerance=jnp.maximum(value_error, rounding) * scale,
                num_widened=jnp.zeros_like(slope, jnp.int32),
                num_evaluations=probes.astype(jnp.int32),
                outcome=jnp.where(starts, SearchOutcome.NOT_STARTED, failure).astype(
                    jnp.int32
                ),
            ),
        )

        # What a search that did not move has kept is what it was given. Nobody is to be
        # handed a value or a gradient that was a failure.
        kept = search.kept
        moved = kept.step > 0
        known = jnp.isfinite(kept.value)
        known &= jnp.isfinite(tree.largest(search.kept_grad, dtype))
        kept_grad = tree.select(known, search.kept_grad, state.grad)
        new_state = HagerZhangLineSearchState(
            count=optax.safe_increment(state.count),
            num_skipped=state.num_skipped,
            step=kept.step,
            slope=slope,
            value=kept.value,
            grad=kept_grad,
            value_scale=scale,
            value_weight=weight,
            approximate=state.approximate
            | (jnp.abs(kept.value - value) <= 1e-3 * scale),
            unit_step_error=first_trial.unit_step_error(
                state.unit_step_error, state.count == 0, origin, kept
            ),
            num_evaluations=search.num_evaluations,
            outcome=search.outcome,
        )
        stayed = state._replace(
            num_skipped=state.num_skipped + (~finite).astype(jnp.int32),
            value=jnp.where(known, kept.value, jnp.inf),
            grad=kept_grad,
            num_evaluations=search.num_evaluations,
            outcome=search.outcome,
        )
        outputs = jax.tree.map(lambda u: jnp.where(moved, u, 0), scaled(kept.step))
        return outputs, tree.select(moved, new_state, stayed)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
