"""Derivatives of a minimiser by the implicit function theorem."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_nlcg import tree
from optax_nlcg.tree import Tree

# Linear conjugate gradients take as many steps as there are parameters, but for
# rounding; ill-conditioned systems take many times that. There is a limit to patience.
_LINEAR_STEPS_PER_PARAMETER = 20
_LEAST_LINEAR_STEPS, _MOST_LINEAR_STEPS = 1_000, 100_000
# A residual, relative to the right-hand side, by which a system has not been solved.
_UNSOLVED = 1e-2


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
    The rule is linear in :math:`\dot\theta` and can be transposed: both modes work. A
    system that is not solved after 20 steps for each parameter (1000 at least, 100,000
    at most) gives NaN.

    Args:
        solve: ``solve(fun, params)`` minimises ``fun(params)``, which returns a value
            and anything else, and returns a tuple ``(solution, value, aux, info)``.
            Nothing is differentiated with respect to what it closes over.
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

    # What the solver closes over, such as a tolerance in units of an argument, changes
    # the way but not the minimum.
    solve_closed, settings = jax.closure_convert(
        lambda start, theta: solve(lambda x: with_theta(x, theta), start),
        params,
        (args, constants),
    )

    @jax.custom_jvp
    def run(start, theta, settings):
        return solve_closed(start, theta, *settings)

    @run.defjvp
    def run_jvp(primals, tangents):
        (start, theta, settings), (_, theta_dot, _) = primals, tangents
        outputs = run(start, theta, settings)
        solution, info = outputs[0], outputs[3]

        def gradient(x, th):
            return jax.grad(lambda p: with_theta(p, th)[0])(x)

        def hessian_product(v):
            return jax.jvp(lambda x: gradient(x, theta), (solution,), (v,))[1]

        _, mixed = jax.jvp(lambda th: gradient(solution, th), (theta,), (theta_dot,))
        solution_dot = _solve_linear(hessian_product, jax.tree.map(jnp.negative, mixed))
        slopes = jax.grad(
            lambda x, th: with_theta(x, th)[0], argnums=(0, 1), allow_int=True
        )(solution, theta)
        value_dot = _pairing(slopes, (solution_dot, theta_dot))
        aux_dot = outputs[2]
        # Not of the value: a loss with a backward pass of its own has no forward one.
        if jax.tree.leaves(aux_dot):
            _, aux_dot = jax.jvp(
                lambda x, th: with_theta(x, th)[1],
                (solution, theta),
                (solution_dot, theta_dot),
            )
        # The solver has the value in its own dtype, and a tangent must have the same.
        value_dot = value_dot.astype(outputs[1].dtype)
        return outputs, (solution_dot, value_dot, aux_dot, _no_tangent(info))

    return run(params, (args, constants), settings)


def _pairing(slopes: Tree, tangents: Tree) -> jax.Array:
    """What a change of arguments by tangents does to a function of these slopes."""
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(tangents), strict=True)
    terms = [
        jnp.sum(jnp.real(slope * tangent))
        for slope, tangent in pairs
        if slope.dtype != jax.dtypes.float0
    ]
    return jnp.asarray(sum(terms))


def _solve_linear(matvec: Callable[[Tree], Tree], rhs: Tree) -> Tree:
    leaves = jax.tree.leaves(rhs)
    # Products are as exact as the narrowest leaf.
    tol = 100 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    # A linear solve can be transposed only if all leaves of its right-hand side depend
    # on the tangents. A leaf that no argument acts on does not: tie it to the others.
    nothing = jnp.where(False, sum(jnp.sum(leaf) for leaf in leaves), 0)
    rhs = jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), rhs)

    def solve(matvec, rhs):
        wide = tree.widen(rhs)
        # In units of the largest entry, so that squares neither overflow nor vanish.
        largest = tree.largest(wide, tree.scalar_dtype(wide))
        unit = jnp.where(largest > 0, largest, 1)
        solution = _conjugate_gradients(
            lambda v: tree.widen(matvec(tree.cast_like(v, rhs))),
            jax.tree.map(lambda leaf: (leaf / unit).astype(leaf.dtype), wide),
            tol,
        )
        return jax.tree.map(lambda x, y: (unit * x).astype(y.dtype), solution, rhs)

    return jax.lax.custom_linear_solve(matvec, rhs, solve, symmetric=True)


def _conjugate_gradients(matvec: Callable[[Tree], Tree], rhs: Tree, tol: float) -> Tree:
    """Linear conjugate gradients from zero, to a residual of ``tol`` times ``rhs``.

    NaN where they come to no solution. JAX's own take inner products that an explicit
    mesh refuses of split leaves.
    """

    def square(x):
        return tree.inner_products([(x, x)])[0]

    size = square(rhs)
    limit = _LINEAR_STEPS_PER_PARAMETER * tree.size(rhs)
    limit = min(max(limit, _LEAST_LINEAR_STEPS), _MOST_LINEAR_STEPS)

    def unfinished(carry):
        _, _, _, residual, step = carry
        return (residual > tol**2 * size) & (step < limit)

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
    x, _, _, residual, _ = jax.lax.while_loop(unfinished, advance, start)
    # One, or 0 / 0. Selecting a constant would ask how it is split on an explicit mesh.
    solved = (residual <= _UNSOLVED**2 * size).astype(size.dtype)
    return jax.tree.map(lambda leaf: (solved / solved * leaf).astype(leaf.dtype), x)


def _no_tangent(info: Tree) -> Tree:
    """Zero tangents, of the type that integers and truth values have."""

    def zero(x):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return jnp.zeros_like(x)
        return np.zeros(x.shape, jax.dtypes.float0)

    return jax.tree.map(zero, info)
