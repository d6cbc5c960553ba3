"""The full-batch solver: minimises a function to a tolerance, inside one program."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import arguments, tree
from optax_nlcg.alias import limited_memory_cg
from optax_nlcg.implicit import differentiate_implicitly
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
            precision of the arithmetic is exhausted.
        NOT_FINITE: the value or the gradient at the starting point is not finite, or
            became so with a solver that does not prevent it.
    """

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    MAX_EVALUATIONS = 3
    STALLED = 4
    NOT_FINITE = 5


_MESSAGES = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "converged: the largest gradient entry is within `tol`",
    Status.MAX_STEPS: "not converged: `max_steps` reached",
    Status.MAX_EVALUATIONS: "not converged: `max_evaluations` reached",
    Status.STALLED: (
        "not converged: no further progress is possible in this precision; use a wider "
        "dtype or a larger `tol`"
    ),
    Status.NOT_FINITE: "not converged: the value or its gradient is not finite",
}


class History(NamedTuple):
    """Progress by step; entries after the last step are NaN (evaluations: 0).

    Attributes:
        value: values; entry 0 is the start, entry k that after k steps. As long as
            ``max_steps``, or without it ``max_evaluations``, can make it.
        grad_norm: largest gradient entries, same shape.
        num_evaluations: evaluations so far, int32, same shape.
    """

    value: jax.Array
    grad_norm: jax.Array
    num_evaluations: jax.Array


class MinimizeResult(NamedTuple):
    """Result of :func:`minimize`.

    Attributes:
        params: the solution, or the point of least value found.
        value: the function there, scalar.
        grad_norm: largest absolute entry of the gradient there, scalar.
        num_steps: steps taken, int32 scalar.
        num_evaluations: values plus gradients computed, int32 scalar.
        converged: whether ``grad_norm <= tol``, and ``value`` is finite, bool scalar.
        status: a :class:`Status`, int32 scalar.
        aux: what the function returned besides its value, at ``params``; or ``None``.
        history: a :class:`optax_nlcg.minimize.History` if it was asked for, else
            ``None``.
    """

    params: Tree
    value: jax.Array
    grad_norm: jax.Array
    num_steps: jax.Array
    num_evaluations: jax.Array
    converged: jax.Array
    status: jax.Array
    aux: Any
    history: History | None

    @property
    def message(self) -> str:
        """The status in words; for one concrete result."""
        return _MESSAGES[Status(int(self.status))]


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


class _Loop(NamedTuple):
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


def minimize(
    fun: Callable[..., Any],
    params: Tree,
    args: tuple[Any, ...] = (),
    *,
    solver: optax.GradientTransformation | None = None,
    tol: float = 1e-6,
    max_steps: int | None = None,
    max_evaluations: int = 10_000,
    has_aux: bool = False,
    callback: Callable[[Progress], None] | None = None,
    record_history: bool = False,
) -> MinimizeResult:
    r"""Minimises a smooth function of a tree of parameters.

    It stops where :math:`\max_i |g_i| \le` ``tol``, and reports success only if that
    holds at the returned point. Otherwise the point of least value is returned. The
    whole solver is one program: use it inside :func:`jax.jit` (which also saves
    compiling it at every call) and under :func:`jax.vmap`, where each lane has its own
    steps and counters.

    The solution can be differentiated with respect to ``args`` and to arrays that
    ``fun`` closes over, in forward and reverse mode, by the implicit function theorem:
    linear conjugate gradients solve one system with the Hessian at the solution. That
    needs a strict minimum and a tight ``tol``. It does not depend on the starting
    point, so that derivative is zero.

    Complex parameters are taken as their real and imaginary parts, and so are their
    gradients.

    Args:
        fun: function ``fun(params, *args)`` to a real scalar, or to a pair of it and
            anything else if ``has_aux``.
        params: starting point, a tree of real or complex arrays.
        args: further arguments of ``fun``.
        solver: Optax transformation that makes complete steps, a chain that ends in a
            line search or in a learning rate. It is given ``value``, ``grad`` and
            ``value_fn``. By default
            :func:`optax_nlcg.limited_memory_cg`, which needs the fewest evaluations;
            :func:`optax_nlcg.nonlinear_cg` needs the least memory.
        tol: largest absolute entry of the gradient to accept. It has the units of the
            gradient: scale it with ``fun``.
        max_steps: most steps; ``None``: no limit.
        max_evaluations: most evaluations, values plus gradients. The step that reaches
            it is completed.
        has_aux: whether ``fun`` returns a pair. Costs one more value, at the solution.
        callback: called on the host after each step with a
            :class:`optax_nlcg.minimize.Progress`. Under :func:`jax.vmap` lanes that are
            done report the step they would take next until all are.
        record_history: whether to return a :class:`optax_nlcg.minimize.History`.

    Returns:
        A :class:`MinimizeResult`.

    Raises:
        TypeError: if the parameters are not floating-point arrays, or an argument has
            the wrong type.
        ValueError: if ``fun`` does not return a real scalar, or a number is out of
            range.

    Examples:
        >>> import jax.numpy as jnp, optax_nlcg
        >>> def rosenbrock(x):
        ...     return jnp.sum(100 * (x[1:] - x[:-1]**2)**2 + (1 - x[:-1])**2)
        >>> result = optax_nlcg.minimize(rosenbrock, jnp.zeros(4), tol=1e-3)
        >>> bool(result.converged), result.message
        (True, 'converged: the largest gradient entry is within `tol`')
        >>> bool(jnp.allclose(result.params, 1, atol=1e-2))
        True
    """
    arguments.check_function("fun", fun)
    if solver is None:
        solver = limited_memory_cg()
    arguments.check_transformation("solver", solver)
    arguments.check_number("tol", tol, low=0)
    arguments.check_number("max_evaluations", max_evaluations, low=1, integer=True)
    if max_steps is not None:
        arguments.check_number("max_steps", max_steps, low=0, integer=True)
    if callback is not None:
        arguments.check_function("callback", callback)
    if not isinstance(args, list | tuple):
        raise TypeError(f"`args` must be a tuple of arguments, got {args!r}.")
    args = tuple(args)
    params = jax.tree.map(jnp.asarray, params)
    _check_function(fun, params, args, has_aux)

    def real_fun(parts, *fun_args):
        output = fun(_join(parts, params), *fun_args)
        return output if has_aux else (output, None)

    def solve(closed_fun, parts):
        loop = _run(
            lambda x: closed_fun(x)[0],
            parts,
            optax.with_extra_args_support(solver),
            tol,
            max_steps,
            max_evaluations,
            callback,
            record_history,
        )
        aux = closed_fun(loop.best_params)[1] if has_aux else None
        info = loop._replace(current=None, best_params=None, optimizer=None)
        return loop.best_params, loop.best_value, aux, info

    parts, value, aux, loop = differentiate_implicitly(
        solve, real_fun, _split(params), args
    )
    return MinimizeResult(
        params=_join(parts, params),
        value=value,
        grad_norm=loop.best_grad_norm,
        num_steps=loop.num_steps,
        num_evaluations=loop.num_evaluations + int(has_aux),
        converged=loop.status == Status.CONVERGED,
        status=loop.status,
        aux=aux,
        history=loop.history,
    )


def _run(
    value_fn: Callable[[Tree], jax.Array],
    params: Tree,
    solver: optax.GradientTransformationExtraArgs,
    tol: float,
    max_steps: int | None,
    max_evaluations: int,
    callback: Callable[[Progress], None] | None,
    record_history: bool,
) -> _Loop:
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

        # A solver that stands still forgets what it has learnt; once more, it is done.
        # (Small updates can be lost in the addition, so it is the sum that tells.)
        pairs = zip(jax.tree.leaves(at), jax.tree.leaves(now.params), strict=True)
        moved = jnp.any(jnp.array([jnp.any(a != b) for a, b in pairs], bool))
        progress = current.value < loop.least_value
        progress |= current.grad_norm < loop.least_grad_norm
        # A solver that lets the loss rise, as Adam does, is not stuck.
        change = jnp.abs(current.value - now.value)
        progress |= change > 100 * jnp.finfo(dtype).eps * jnp.abs(now.value)
        idle = jnp.where(progress, 0, loop.idle + 1)
        stuck = (~moved & loop.restarted) | (idle >= _PATIENCE)
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
        return _Loop(
            current=current,
            best_params=tree.select(keep, at, loop.best_params),
            best_value=jnp.where(keep, current.value, loop.best_value),
            best_grad_norm=jnp.where(keep, current.grad_norm, loop.best_grad_norm),
            least_value=least_value,
            least_grad_norm=jnp.fmin(current.grad_norm, loop.least_grad_norm),
            optimizer=tree.select(moved, optimizer, solver.init(at)),
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
        _Loop(
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

    A search that ended there knows both. The states are told apart by their type: field
    names can occur in the parameters as well.
    """
    known = (
        HagerZhangLineSearchState,
        optax.ScaleByZoomLinesearchState,
        optax.ScaleByBacktrackingLinesearchState,
    )
    states = [
        leaf
        for leaf in jax.tree.leaves(optimizer, is_leaf=lambda x: isinstance(x, known))
        if isinstance(leaf, known)
    ]
    search = states[-1] if states else None
    if isinstance(search, HagerZhangLineSearchState):
        return search.value, search.grad, search.num_evaluations
    if isinstance(search, optax.ScaleByZoomLinesearchState):
        trials = jnp.asarray(search.info.num_linesearch_steps, jnp.int32)
        return jnp.asarray(search.value), search.grad, 2 * trials
    value, grad = jax.value_and_grad(value_fn)(params)
    trials = 0 if search is None else search.info.num_linesearch_steps
    return value, grad, jnp.asarray(trials, jnp.int32) + 2


def _check_function(fun, params, args, has_aux) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"`params{jax.tree_util.keystr(path)}` must be floating point to be "
                f"minimised over, got {leaf.dtype}: convert it, e.g. with `1.0 * x`."
            )
    output = jax.eval_shape(fun, params, *args)
    if has_aux and not (isinstance(output, tuple) and len(output) == 2):
        raise ValueError(
            "With `has_aux=True`, `fun` must return a pair `(value, aux)`, got "
            f"{jax.tree.structure(output)}."
        )
    value = output[0] if has_aux else output
    is_array = isinstance(value, jax.ShapeDtypeStruct)
    if not (
        is_array and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
    ):
        hint = "" if has_aux else " (`has_aux=True` if it returns a pair)"
        raise ValueError(f"`fun` must return a real scalar{hint}, got {value}.")


def _split(params: Tree) -> Tree:
    """Replaces each complex leaf by the pair of its real and imaginary parts."""
    return jax.tree.map(
        lambda x: (jnp.real(x), jnp.imag(x)) if jnp.iscomplexobj(x) else x, params
    )


def _join(parts: Tree, like: Tree) -> Tree:
    """Undoes :func:`_split`."""
    return jax.tree.map(
        lambda x, part: jax.lax.complex(*part) if jnp.iscomplexobj(x) else part,
        like,
        parts,
    )
