"""Derivatives of a minimiser by the implicit function theorem."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_nlcg import tree
from optax_nlcg.tree import Tree

# Limit of linear conjugate gradient steps for one derivative.
_MAX_LINEAR_STEPS = 1000


def differentiate_implicitly(
    solve: Callable[[Callable[[Tree], tuple[jax.Array, Any]], Tree], Any],
    fun: Callable[..., tuple[jax.Array, Any]],
    params: Tree,
    args: tuple[Any, ...],
) -> Any:
    r"""Runs a minimiser so that its result can be differentiated.

    At a strict minimum :math:`\nabla_x f(x, \theta) = 0` and
    :math:`H = \nabla_x^2 f` is positive definite, so that

    .. math:: H\, \dot x = -\partial_\theta \nabla_x f \, \dot\theta,

    a system for linear conjugate gradients, which need only products with :math:`H`.
    The rule is linear in :math:`\dot\theta` and can be transposed: both modes work.

    Args:
        solve: ``solve(fun, params)`` minimises ``fun(params)``, which returns a value
            and anything else, and returns a tuple ``(solution, value, aux, info)``.
        fun: ``fun(params, *args)`` to a pair of a value and anything else.
        params: starting point, a tree of real arrays.
        args: arguments to differentiate with respect to; so are arrays that ``fun``
            closes over.

    Returns:
        What ``solve`` returns. ``info`` and the starting point have no derivative.
    """
    closed, constants = jax.closure_convert(fun, params, *args)

    def with_theta(x, theta):
        theta_args, theta_constants = theta
        return closed(x, *theta_args, *theta_constants)

    @jax.custom_jvp
    def run(start, theta):
        return solve(lambda x: with_theta(x, theta), start)

    @run.defjvp
    def run_jvp(primals, tangents):
        (start, theta), (_, theta_dot) = primals, tangents
        outputs = run(start, theta)
        solution, info = outputs[0], outputs[3]

        def gradient(x, th):
            return jax.grad(lambda p: with_theta(p, th)[0])(x)

        def hessian_product(v):
            return jax.jvp(lambda x: gradient(x, theta), (solution,), (v,))[1]

        _, mixed = jax.jvp(lambda th: gradient(solution, th), (theta,), (theta_dot,))
        solution_dot = _solve_linear(hessian_product, jax.tree.map(jnp.negative, mixed))
        _, (value_dot, aux_dot) = jax.jvp(
            with_theta, (solution, theta), (solution_dot, theta_dot)
        )
        # The solver has the value in its own dtype, and a tangent must have the same.
        value_dot = value_dot.astype(outputs[1].dtype)
        return outputs, (solution_dot, value_dot, aux_dot, _no_tangent(info))

    return run(params, (args, constants))


def _solve_linear(matvec: Callable[[Tree], Tree], rhs: Tree) -> Tree:
    leaves = jax.tree.leaves(rhs)
    # Products are as exact as the narrowest leaf.
    tol = 100 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    # A linear solve can be transposed only if all leaves of its right-hand side depend
    # on the tangents. A leaf that no argument acts on does not: tie it to the others.
    nothing = jnp.where(False, sum(jnp.sum(leaf) for leaf in leaves), 0)
    rhs = jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), rhs)

    def solve(matvec, rhs):
        solution = _conjugate_gradients(
            lambda v: tree.widen(matvec(tree.cast_like(v, rhs))), tree.widen(rhs), tol
        )
        return tree.cast_like(solution, rhs)

    return jax.lax.custom_linear_solve(matvec, rhs, solve, symmetric=True)


def _conjugate_gradients(matvec: Callable[[Tree], Tree], rhs: Tree, tol: float) -> Tree:
    """Linear conjugate gradients from zero, to a residual of ``tol`` times ``rhs``.

    JAX's own take inner products that an explicit mesh refuses of split leaves.
    """

    def square(x):
        return tree.inner_products([(x, x)])[0]

    size = square(rhs)

    def unfinished(carry):
        _, _, _, residual, step = carry
        return (residual > tol**2 * size) & (step < _MAX_LINEAR_STEPS)

    def advance(carry):
        x, r, p, residual, step = carry
        product = matvec(p)
        # Not positive where there is no strict minimum, and then nothing to be had.
        alpha = residual / tree.inner_products([(p, product)])[0]
        x, r = tree.add_scaled(x, alpha, p), tree.add_scaled(r, -alpha, product)
        new_residual = square(r)
        p = tree.add_scaled(r, new_residual / residual, p)
        return x, r, p, new_residual, step + 1

    start = tree.full_like(rhs, 0), rhs, rhs, size, 0
    solution, *_ = jax.lax.while_loop(unfinished, advance, start)
    return solution


def _no_tangent(info: Tree) -> Tree:
    """Zero tangents, of the type that integers and truth values have."""

    def zero(x):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return jnp.zeros_like(x)
        return np.zeros(x.shape, jax.dtypes.float0)

    return jax.tree.map(zero, info)
