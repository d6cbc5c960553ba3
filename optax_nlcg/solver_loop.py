"""The loop of a full-batch solver: its ends, and what it tells on the way."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import tree
from optax_nlcg.tree import Tree
from optax_nlcg.wolfe_search import HagerZhangLineSearchState


class Status(enum.IntEnum):
    """How a minimisation ended.

    Attributes:
        RUNNING: it has not.
        CONVERGED: the largest gradient entry is within the tolerance.
        MAX_STEPS: the limit of steps was reached.
        MAX_EVALUATIONS: the limit of evaluations was reached.
        STALLED: steps brought no lower value and no smaller gradient any more: the
            precision of the arithmetic is exhausted, or the function has no minimum or
            is not smooth there.
        NOT_FINITE: the value or the gradient at the starting point is not finite, or
            became so with a solver that does not prevent it.
    """

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    MAX_EVALUATIONS = 3
    STALLED = 4
    NOT_FINITE = 5


class History(NamedTuple):
    """Progress by step; entries after the last step are NaN (evaluations: 0).

    So the option ``jax_debug_nans`` does not go with it.

    Attributes:
        value: values; entry 0 is the start, entry k that after k steps. As long as
            ``max_steps``, or without it ``max_evaluations``, can make it.
        grad_norm: largest gradient entries, same shape.
        num_evaluations: evaluations so far, int32, same shape.
    """

    value: jax.Array
    grad_norm: jax.Array
    num_evaluations: jax.Array


class Progress(NamedTuple):
    """What a callback is told after each step.

    Attributes:
        num_steps: steps taken so far, int32 scalar.
        value: the function at the last of them, scalar.
        grad_norm: largest absolute entry of the gradient there, scalar.
        num_evaluations: values plus gradients computed so far, int32 scalar.
    """

    num_steps: jax.Array
    value: jax.Array
    grad_norm: jax.Array
    num_evaluations: jax.Array


class _Iterate(NamedTuple):
    params: Tree
    value: jax.Array
    grad: Tree
    grad_norm: jax.Array


class Loop(NamedTuple):
    """What a run carries from step to step.

    ``value`` and ``grad_norm`` with ``best_`` are those of the best point so far; with
    ``least_`` each is the least by itself.
    """

    current: _Iterate
    best_params: Tree
    best_value: jax.Array
    best_grad_norm: jax.Array
    least_value: jax.Array
    least_grad_norm: jax.Array
    optimizer: Tree
    restarted: jax.Array
    idle: jax.Array
    num_steps: jax.Array
    num_evaluations: jax.Array
    status: jax.Array
    history: History | None


# Steps without a lower value, a smaller gradient, or any change of the value beyond its
# rounding, before the search is given up. (On ill-conditioned problems gradients can
# take hundreds of steps to a new low.)
_PATIENCE = 1000


def run(
    value_fn: Callable[[Tree], jax.Array],
    params: Tree,
    solver: optax.GradientTransformationExtraArgs,
    tol: float,
    max_steps: int | None,
    max_evaluations: int,
    callback: Callable[[Progress], None] | None,
    record_history: bool,
) -> Loop:
    """Runs the solver to one of the ends that :class:`Status` lists."""
    dtype = tree.scalar_dtype(params)

    def iterate(at, value, grad):
        value = jnp.asarray(value).astype(dtype)
        return _Iterate(at, value, grad, tree.largest(grad, dtype))

    def status_of(current, loop_status, num_steps, num_evaluations):
        finite = jnp.isfinite(current.value) & jnp.isfinite(current.grad_norm)
        status = jnp.where(
            num_evaluations >= max_evaluations, Status.MAX_EVALUATIONS, loop_status
        )
        if max_steps is not None:
            status = jnp.where(num_steps >= max_steps, Status.MAX_STEPS, status)
        # The gradient is zero where the value is a constant infinity: no minimum.
        status = jnp.where(current.grad_norm <= tol, Status.CONVERGED, status)
        status = jnp.where(finite, status, Status.NOT_FINITE)
        return status.astype(jnp.int32)

    def record(history, step, current, num_evaluations):
        if history is None:
            return None
        return History(
            value=history.value.at[step].set(current.value),
            grad_norm=history.grad_norm.at[step].set(current.grad_norm),
            num_evaluations=history.num_evaluations.at[step].set(num_evaluations),
        )

    def body(loop):
        now = loop.current
        updates, optimizer = solver.update(
            now.grad,
            loop.optimizer,
            now.params,
            value=now.value,
            grad=now.grad,
            value_fn=value_fn,
        )
        at = optax.apply_updates(now.params, updates)
        value, grad, cost = _evaluate_after(value_fn, at, optimizer)
        current = iterate(at, value, grad)
        num_steps = loop.num_steps + 1
        num_evaluations = loop.num_evaluations + cost

        # Small updates can be lost in the addition, so it is the sum that tells.
        pairs = zip(jax.tree.leaves(at), jax.tree.leaves(now.params), strict=True)
        moved = jnp.any(jnp.array([jnp.any(a != b) for a, b in pairs], bool))
        progress = current.value < loop.least_value
        progress |= current.grad_norm < loop.least_grad_norm
        # A solver that lets the loss rise, as Adam does, is not stuck.
        change = jnp.abs(current.value - now.value)
        progress |= change > 100 * jnp.finfo(dtype).eps * jnp.abs(now.value)
        idle = jnp.where(progress, 0, loop.idle + 1)
        stuck = idle >= _PATIENCE
        # A search that stands still forgets what it has learnt; once more, it is done.
        # Without one it may be the schedule's warm-up, and time will tell.
        if _search(optimizer) is not None:
            # Nor do directions in few dimensions bring more after some times as many.
            stuck |= idle >= 20 + 4 * tree.size(params)
            stuck |= ~moved & loop.restarted
            optimizer = tree.select(moved, optimizer, solver.init(at))
        status = status_of(
            current,
            jnp.where(stuck, Status.STALLED, Status.RUNNING),
            num_steps,
            num_evaluations,
        )
        # The best point has the least value, and of those that rounding does not tell
        # apart the smallest gradient.
        least_value = jnp.fmin(current.value, loop.least_value)
        bar = least_value + 4 * jnp.finfo(dtype).eps * jnp.abs(least_value)
        flatter = current.grad_norm < loop.best_grad_norm
        keep = (current.value <= bar) & ((loop.best_value > bar) | flatter)
        keep |= status == Status.CONVERGED
        if callback is not None:
            jax.debug.callback(
                callback,
                Progress(num_steps, current.value, current.grad_norm, num_evaluations),
            )
        return Loop(
            current=current,
            best_params=tree.select(keep, at, loop.best_params),
            best_value=jnp.where(keep, current.value, loop.best_value),
            best_grad_norm=jnp.where(keep, current.grad_norm, loop.best_grad_norm),
            least_value=least_value,
            least_grad_norm=jnp.fmin(current.grad_norm, loop.least_grad_norm),
            optimizer=optimizer,
            restarted=~moved,
            idle=idle,
            num_steps=num_steps,
            num_evaluations=num_evaluations,
            status=status,
            history=record(loop.history, num_steps, current, num_evaluations),
        )

    zero = jnp.zeros((), jnp.int32)
    start = iterate(params, *jax.value_and_grad(value_fn)(params))
    history = None
    if record_history:
        # Every step costs a value and a gradient or more.
        length = (max_evaluations // 2 if max_steps is None else max_steps) + 2
        nan = jnp.full((length,), jnp.nan, dtype)
        history = History(nan, nan, jnp.zeros((length,), jnp.int32))
    return jax.lax.while_loop(
        lambda loop: loop.status == Status.RUNNING,
        body,
        Loop(
            current=start,
            best_params=params,
            best_value=start.value,
            best_grad_norm=start.grad_norm,
            least_value=start.value,
            least_grad_norm=start.grad_norm,
            optimizer=solver.init(params),
            restarted=jnp.ones((), bool),
            idle=zero,
            num_steps=zero,
            num_evaluations=zero + 2,
            status=status_of(start, Status.RUNNING, zero, zero + 2),
            history=record(history, 0, start, zero + 2),
        ),
    )


def _evaluate_after(
    value_fn: Callable[[Tree], jax.Array], params: Tree, optimizer: Tree
) -> tuple[jax.Array, Tree, jax.Array]:
    """Value and gradient after a step, and all evaluations that the step has cost.

    A search that ended there knows both, unless what follows it in the chain has moved
    on.
    """
    search, last = _search(optimizer), optimizer
    while type(last) is tuple and last:
        last = last[-1]
    cost = 0
    if isinstance(search, HagerZhangLineSearchState):
        cost = search.num_evaluations
    elif isinstance(search, optax.ScaleByZoomLinesearchState):
        cost = 2 * search.info.num_linesearch_steps
    elif search is not None:
        cost = search.info.num_linesearch_steps
    cost = jnp.asarray(cost, jnp.int32)
    knows = HagerZhangLineSearchState, optax.ScaleByZoomLinesearchState
    if search is last and isinstance(search, knows):
        return jnp.asarray(search.value), search.grad, cost
    return *jax.value_and_grad(value_fn)(params), cost + 2


def _search(optimizer: Tree) -> Any:
    """State of the last line search that looks for a minimum, or None.

    States are told apart by their type: field names can occur in the parameters too.
    """
    known = (
        HagerZhangLineSearchState,
        optax.ScaleByZoomLinesearchState,
        optax.ScaleByBacktrackingLinesearchState,
    )
    leaves = jax.tree.leaves(optimizer, is_leaf=lambda x: isinstance(x, known))
    return next((leaf for leaf in reversed(leaves) if isinstance(leaf, known)), None)
