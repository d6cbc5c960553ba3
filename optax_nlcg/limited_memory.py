"""The limited-memory BFGS matrix, for parameters in any layout and dtype."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import arguments, tree
from optax_nlcg.tree import Tree


class LimitedMemoryState(NamedTuple):
    """State of :func:`scale_by_limited_memory`.

    Attributes:
        count: number of updates so far, int32 scalar.
        params: parameters at the last of them.
        updates: the gradient that was given there.
        steps: the last differences of parameters, leaves ``[memory_size, ...]``; that
            of update number k is at ``k % memory_size``.
        changes: the differences of gradients that belong to them.
        weights: their inverse inner products, ``[memory_size]``; 0 where there is no
            pair, or one without positive curvature.
        scale: what the identity is scaled by before all pairs, scalar.
    """

    count: jax.typing.ArrayLike
    params: Tree
    updates: Tree
    steps: Tree
    changes: Tree
    weights: jax.Array
    scale: jax.Array


def scale_by_limited_memory(memory_size: int) -> optax.GradientTransformation:
    r"""Multiplies the gradient by the limited-memory BFGS matrix.

    That is :math:`H_k` of

    .. math::

        H_{i+1} = (I - \rho_i s_i y_i^T) H_i (I - \rho_i y_i s_i^T)
        + \rho_i s_i s_i^T, \qquad \rho_i = 1 / s_i^T y_i,

    over the last ``memory_size`` pairs, from :math:`s^T y / y^T y` of the last one
    times the identity, and before there is one from :math:`\min(1, 1 / |g|)`. It is
    what :func:`optax.scale_by_lbfgs` computes, here with inner products that are
    accumulated in float32 or wider and may be over leaves that are split over devices.
    Pairs without positive curvature are left out.

    Args:
        memory_size: number of pairs, at least 1.

    Returns:
        The transformation. ``update`` needs ``params``. The state holds
        ``2 * memory_size + 2`` copies of the parameters.

    References:
        Nocedal & Wright, `Numerical Optimization
        <https://doi.org/10.1007/978-0-387-40065-5>`_, 2006, algorithm 7.4.
    """
    stage = "limited_memory_cg"

    def init_fn(params: Tree) -> Tree:
        def nothing():
            stacks = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (memory_size, *jnp.shape(x))), params
            )
            return tree.full_like(stacks, 0)

        dtype = tree.scalar_dtype(params)
        return LimitedMemoryState(
            count=jnp.zeros((), jnp.int32),
            params=tree.full_like(params, 0),
            updates=tree.full_like(params, 0),
            steps=nothing(),
            changes=nothing(),
            weights=jnp.zeros(memory_size, dtype),
            scale=jnp.ones((), dtype),
        )

    def update_fn(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        arguments.require_params(stage, params)
        arguments.check_kind_of_state(stage, state, LimitedMemoryState)
        tree.check_match(updates, state.updates, stage=stage)
        arguments.check_state(
            stage,
            len(state.weights) == memory_size,
            f"memory_size={len(state.weights)}, here it is {memory_size}",
        )
        updates = tree.cast_like(updates, state.updates)
        step = optax.tree.sub(params, state.params)
        change = optax.tree.sub(updates, state.updates)
        dtype = state.scale.dtype
        products = tree.inner_products(
            [(step, change), (change, change), (updates, updates)], dtype
        )
        curvature, square, norm = products[0], products[1], jnp.sqrt(products[2])
        later = state.count > 0
        # The search, which sees the gradient too, skips the step and counts it.
        finite = jnp.all(jnp.isfinite(products)) | (~later & jnp.isfinite(norm))
        positive = jnp.where(curvature > 0, curvature, 1)
        weight, ratio = 1 / positive, positive / square
        usable = later & (curvature > 0) & jnp.isfinite(ratio)
        scale = jnp.where(usable, ratio, state.scale)
        scale = jnp.where(later, scale, 1 / jnp.maximum(1, norm))

        place = (state.count - 1) % memory_size

        def remember(memory, new):
            memory = jnp.asarray(memory)  # restored ones may be NumPy's
            new = jnp.where(usable, new, 0)
            return memory.at[place].set(jnp.where(finite, new, memory[place]))

        remembered = LimitedMemoryState(
            count=jnp.where(finite, optax.safe_increment(state.count), state.count),
            params=tree.select(finite, params, state.params),
            updates=tree.select(finite, updates, state.updates),
            steps=jax.tree.map(remember, state.steps, step),
            changes=jax.tree.map(remember, state.changes, change),
            weights=remember(state.weights, weight),
            scale=jnp.where(finite, scale, state.scale),
        )
        return _product(remembered, updates), remembered

    return optax.GradientTransformation(init_fn, update_fn)


def _product(state: LimitedMemoryState, vector: Tree) -> Tree:
    """The product of the matrix and a vector, by the two loops over its pairs."""
    memory_size = len(state.weights)
    # From the oldest pair to the newest.
    order = (state.count - 1 + jnp.arange(memory_size)) % memory_size

    def pair(i):
        return jax.tree.map(lambda x: x[i], (state.steps, state.changes))

    def dot(x, y):
        return tree.inner_products([(x, y)], state.scale.dtype)[0]

    def back(vector, i):
        step, change = pair(i)
        alpha = state.weights[i] * dot(step, vector)
        return tree.add_scaled(vector, -alpha, change), alpha

    def forth(vector, i_and_alpha):
        i, alpha = i_and_alpha
        step, change = pair(i)
        beta = state.weights[i] * dot(change, vector)
        return tree.add_scaled(vector, alpha - beta, step), None

    # Twenty additions in bfloat16 would leave little of the direction.
    wide, alphas = jax.lax.scan(back, tree.widen(vector), order, reverse=True)
    wide = jax.tree.map(lambda x: (state.scale * x).astype(x.dtype), wide)
    wide, _ = jax.lax.scan(forth, wide, (order, alphas))
    return tree.cast_like(wide, vector)
