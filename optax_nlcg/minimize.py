"""The full-batch solver: minimises a function to a tolerance, inside one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optax_nlcg import arguments, solver_loop
from optax_nlcg.alias import limited_memory_cg
from optax_nlcg.implicit import differentiate_implicitly
from optax_nlcg.solver_loop import History, Progress, Status
from optax_nlcg.tree import Tree

_MESSAGES = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "converged: the largest gradient entry is within `tol`",
    Status.MAX_STEPS: "not converged: `max_steps` reached",
    Status.MAX_EVALUATIONS: "not converged: `max_evaluations` reached",
    Status.STALLED: (
        "not converged: no further progress is possible in this precision; use a wider "
        "dtype or a larger `tol`, unless the function has no minimum or a kink there"
    ),
    Status.NOT_FINITE: "not converged: the value or its gradient is not finite",
}


class MinimizeResult(NamedTuple):
    """Result of :func:`minimize`.

    Attributes:
        params: the solution, or the point of least value found.
        value: the function there, scalar.
        grad_norm: largest absolute entry of the gradient there, scalar.
        num_steps: steps taken, int32 scalar.
        num_evaluations: values plus gradients computed, int32 scalar; without products
            with the Hessian that a solver takes.
        converged: whether ``grad_norm <= tol``, and ``value`` is finite, bool scalar.
        status: a :class:`Status`, int32 scalar.
        aux: what the function returned besides its value, at ``params``; or ``None``.
        history: a :class:`optax_nlcg.solver_loop.History` if it was asked for, else
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
    needs a strict minimum and a tight ``tol``; derivatives are NaN where the system is
    not solved. The solution does not depend on the starting point, nor on ``tol`` and
    what ``solver`` is made of, so those derivatives are zero.

    Squares of gradients must fit the dtype: in float32, where gradients are above 1e19
    or below 1e-19, scale ``fun``.

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
            gradient: scale it with ``fun``. In float32 gradients of a loss of order one
            seldom become as small as the default; 1e-3 is usual there.
        max_steps: most steps; ``None``: no limit.
        max_evaluations: most evaluations, values plus gradients. The step that reaches
            it is completed. Products with the Hessian that a ``solver`` takes are not
            counted.
        has_aux: whether ``fun`` returns a pair. Costs one more value, at the solution.
        callback: called on the host after each step with a
            :class:`optax_nlcg.solver_loop.Progress`. Under :func:`jax.vmap` lanes that
            are done report the step they would take next until all are.
        record_history: whether to return a :class:`optax_nlcg.solver_loop.History`.

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
    longest = max_evaluations if max_steps is None else max_steps
    if record_history and isinstance(longest, Tracer):
        name = "max_evaluations" if max_steps is None else "max_steps"
        raise ValueError(
            f"With `record_history=True` the history is as long as `{name}` says, so "
            "that must be a number, got a traced array: make it a static argument."
        )
    if callback is not None:
        arguments.check_function("callback", callback)
    if not isinstance(args, list | tuple):
        raise TypeError(f"`args` must be a tuple of arguments, got {args!r}.")
    args = tuple(args)
    params = arguments.as_arrays("params", params)
    _check_function(fun, params, args, has_aux)

    def real_fun(parts, *fun_args):
        output = fun(_join(parts, params), *fun_args)
        return output if has_aux else (output, None)

    def solve(closed_fun, parts):
        loop = solver_loop.run(
            lambda x: closed_fun(x)[0],
            parts,
            optax.with_extra_args_support(solver),
            tol,
            None if max_steps is None else _countable(max_steps),
            _countable(max_evaluations),
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


def _countable(limit: Any) -> Any:
    """A limit beyond what the counters can reach is none."""
    most = np.iinfo(np.int32).max
    return limit if isinstance(limit, jax.Array) else min(limit, most)


def _check_function(fun, params, args, has_aux) -> None:
    arguments.check_floating("params", params)
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
