"""Complete optimizers: thin chains of the stages."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_nlcg import arguments, tree
from optax_nlcg.beta import BetaRule
from optax_nlcg.bfgs import DiagonalBfgsState, scale_by_diagonal_bfgs
from optax_nlcg.direction import ConjugateDirectionState, scale_by_conjugate_direction
from optax_nlcg.limited_memory import scale_by_limited_memory
from optax_nlcg.loss_search import LossLineSearchState, scale_by_step_line_search
from optax_nlcg.tree import Tree
from optax_nlcg.wolfe_search import scale_by_hager_zhang_line_search


def nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta_rule: str | float | BetaRule = "fletcher_reeves",
    beta_bounds: tuple[float, float] | None = (0.0, 1.0),
    preconditioner: optax.GradientTransformation | None = None,
    line_search: optax.GradientTransformation | None = None,
    weight_decay: float | None = None,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic preconditioned nonlinear conjugate gradients.

    .. math::

        z_k = P_k g_k, \qquad d_k = -z_k + \beta_k d_{k-1}, \qquad
        x_{k+1} = x_k + \eta_k c_k (d_k - \lambda x_k)

    with a preconditioner :math:`P`, a conjugacy rule for :math:`\beta`, the learning
    rate :math:`\eta`, a line search's :math:`c` and weight decay :math:`\lambda`, by
    default 0. The line search is the last stage, so any search that takes a descent
    update fits, Optax's included. The defaults are those of the paper.

    Args:
        learning_rate: a number or a schedule of the step count.
        beta_rule: see :func:`optax_nlcg.scale_by_conjugate_direction`.
        beta_bounds: interval that :math:`\beta` is clipped to, or ``None``.
        preconditioner: any Optax transformation; by default
            :func:`optax_nlcg.scale_by_diagonal_bfgs`; ``optax.identity()`` for none.
        line_search: transformation of the update; by default
            :func:`optax_nlcg.scale_by_step_line_search`; ``optax.identity()`` for none.
        weight_decay: coefficient of decoupled weight decay, as in AdamW: the parameters
            shrink by the learning rate times it, and the direction knows nothing of
            that. ``None``: none. A schedule of it is for
            :func:`optax.inject_hyperparams`. An L2 penalty, as in the paper, belongs
            into the loss.
        mask: tree of bools like the parameters, or a function of them that returns one:
            which of them decay. ``None``: all.
        nesterov: whether to step along :math:`-z_k + \max(\beta_k, 0)\, d_k` in place
            of :math:`d_k`.

    Returns:
        The optimizer. With the default line search ``update`` needs ``value=``, the
        loss of this step, and with the default preconditioner or weight decay
        ``params``. The default state holds four copies of the parameters.

    Raises:
        ValueError: if an argument is out of range or a rule is unknown.
        TypeError: if an argument has the wrong type.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return jnp.sum((x - 3.)**2)
        >>> optimizer = optax_nlcg.nlcg(learning_rate=0.1)
        >>> params = jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> for _ in range(30):
        ...     value, grads = jax.value_and_grad(f)(params)
        ...     updates, state = optimizer.update(grads, state, params, value=value)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(params) < 1e-3)
        True

        In Adam's metric, with weight decay for all but biases:

        >>> optimizer = optax_nlcg.nlcg(
        ...     optax.cosine_decay_schedule(0.005, decay_steps=1000),
        ...     preconditioner=optax.scale_by_rms(0.999, bias_correction=True),
        ...     weight_decay=0.01,
        ...     mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ... )

    References:
        Adya, Palakkode & Tuzel, `Nonlinear Conjugate Gradients For Scaling Synchronous
        Distributed DNN Training <https://arxiv.org/abs/1812.02886>`_, 2018.

        Loshchilov & Hutter, `Decoupled Weight Decay Regularization
        <https://arxiv.org/abs/1711.05101>`_, 2019.
    """
    arguments.check_learning_rate(learning_rate)
    if preconditioner is None:
        preconditioner = scale_by_diagonal_bfgs()
    if line_search is None:
        line_search = scale_by_step_line_search()
    arguments.check_transformation("line_search", line_search)
    direction = scale_by_conjugate_direction(
        preconditioner,
        beta_rule=beta_rule,
        beta_bounds=beta_bounds,
        nesterov=nesterov,
    )
    _check_mask(mask, weight_decay)
    if weight_decay is not None:
        arguments.check_number("weight_decay", weight_decay, low=0)
        direction = _decay_weights(direction, weight_decay, mask)
    return _share_history(
        optax.chain(direction, optax.scale_by_learning_rate(learning_rate), line_search)
    )


def _check_mask(mask: Any, weight_decay: Any) -> None:
    if not callable(mask):
        for choice in jax.tree.leaves(mask):
            if not isinstance(choice, bool | np.bool_):
                raise TypeError(
                    "`mask` must be a tree of bools or a function that returns one, "
                    f"got {choice!r} in it."
                )
    if mask is not None and weight_decay is None:
        raise ValueError(
            "`mask` says which parameters decay, but `weight_decay` is None: give a "
            "number."
        )


def _decay_weights(
    direction: optax.GradientTransformationExtraArgs,
    weight_decay: float,
    mask: Tree | Callable[[Tree], Tree] | None,
) -> optax.GradientTransformationExtraArgs:
    """Adds decoupled weight decay to a direction, but for the steps that it skips."""

    def update_fn(
        updates: Tree, state: Tree, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Tree]:
        arguments.require_params("nlcg with `weight_decay`", params)
        made: tuple[Tree, Tree] = direction.update(updates, state, params, **extra_args)
        outputs, new_state = made
        skipped = new_state.num_skipped != state.num_skipped

        def decayed(update, x):
            factor = jnp.where(skipped, 0, weight_decay).astype(jnp.result_type(x))
            return (update + factor * x).astype(update.dtype)

        decay = optax.stateless(functools.partial(jax.tree.map, decayed))
        if mask is not None:
            decay = optax.masked(decay, mask)
        outputs, _ = decay.update(outputs, decay.init(params), params)
        return outputs, new_state

    return optax.GradientTransformationExtraArgs(direction.init, update_fn)


def _share_history(
    optimizer: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Keeps once what diagonal BFGS remembers and another stage wants too.

    BFGS has the gradient and the parameters of the last step. The rule for beta may
    want that gradient; the update that the search takes a part of back is the
    difference of those parameters from the ones of this step.
    """
    shared = optax.EmptyState()

    def forget(state: Tree) -> Tree:
        direction, rate, search = state
        if not isinstance(direction.preconditioner, DiagonalBfgsState):
            return state
        if direction.previous_gradient is not None:
            direction = direction._replace(previous_gradient=shared)
        if _takes_back(search):
            search = search._replace(previous_update=shared)
        return direction, rate, search

    def recall(state: Tree, params: Tree) -> Tree:
        direction, rate, search = state
        bfgs = direction.preconditioner
        if direction.previous_gradient is not None:
            # Behind two barriers, since BFGS looks at it bare and behind one: seeing
            # the same again, the compiler would keep differences formed for BFGS.
            gradient = tree.conceal(tree.conceal(bfgs.previous_gradient))
            direction = direction._replace(previous_gradient=gradient)
        if _takes_back(search):
            step = jax.tree.map(
                # Without a step before there are no parameters of it.
                lambda x, old: jnp.where(bfgs.count > 0, x - old, 0),
                params,
                bfgs.previous_params,
            )
            search = search._replace(previous_update=step)
        return direction, rate, search

    def advance(state: Tree, before: Tree, updates: Tree, params: Tree) -> Tree:
        direction, rate, search = state
        bfgs, old = direction.preconditioner, before[0].preconditioner
        # BFGS has set these already, but early, while the old ones are still wanted, of
        # which that needs a copy. So they are set again after the direction.
        skipped, _ = jax.lax.optimization_barrier(
            (bfgs.num_skipped != old.num_skipped, direction.gz)
        )
        if direction.previous_gradient is not None:
            updates = tree.cast_like(updates, old.previous_gradient)
            bfgs = bfgs._replace(
                previous_gradient=tree.select(skipped, old.previous_gradient, updates)
            )
        if _takes_back(search):
            bfgs = bfgs._replace(
                previous_params=tree.select(skipped, old.previous_params, params)
            )
        return direction._replace(preconditioner=bfgs), rate, search

    def init_fn(params: Tree) -> Tree:
        return forget(optimizer.init(params))

    def update_fn(
        updates: Tree, state: Tree, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Tree]:
        chained = isinstance(state, tuple) and len(state) == 3
        arguments.check_kind_of_state(
            "nlcg", state[0] if chained else state, ConjugateDirectionState
        )
        if params is None or not isinstance(state[0].preconditioner, DiagonalBfgsState):
            return optimizer.update(updates, state, params, **extra_args)
        tree.check_match(params, state[0].direction, stage="nlcg", name="params")
        outputs, new_state = optimizer.update(
            updates, recall(state, params), params, **extra_args
        )
        return outputs, forget(advance(new_state, state, updates, params))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _takes_back(search: Tree) -> bool:
    return (
        isinstance(search, LossLineSearchState) and search.previous_update is not None
    )


def nonlinear_cg(
    *,
    beta_rule: str | float | BetaRule = "hager_zhang",
    preconditioner: optax.GradientTransformation | None = None,
    line_search: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Nonlinear conjugate gradients for a loss without noise (full batch).

    .. math::

        d_k = -P_k g_k + \beta_k d_{k-1}, \qquad x_{k+1} = x_k + a_k d_k

    with a step :math:`a_k` that satisfies the Wolfe conditions, so that there is no
    learning rate to choose. The defaults are the method of CG_DESCENT. Use it through
    :func:`optax_nlcg.minimize`, or step by step like Optax's ``lbfgs``.

    Args:
        beta_rule: see :func:`optax_nlcg.scale_by_conjugate_direction`.
        preconditioner: any Optax transformation; by default none.
        line_search: a search that takes a descent update, Optax's zoom and backtracking
            searches among them; by default
            :func:`optax_nlcg.scale_by_hager_zhang_line_search`.

    Returns:
        The optimizer. ``update`` needs ``params``, ``value``, ``grad`` and
        ``value_fn``. With the defaults the state holds three copies of the parameters.

    Raises:
        ValueError: if a rule is unknown.
        TypeError: if an argument has the wrong type.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return jnp.sum(jnp.cosh(x - jnp.arange(3.)))
        >>> solver = optax_nlcg.nonlinear_cg()
        >>> value_and_grad = optax_nlcg.value_and_grad_from_state(f)
        >>> @jax.jit
        ... def step(x, state):
        ...     value, grad = value_and_grad(x, state=state)
        ...     updates, state = solver.update(
        ...         grad, state, x, value=value, grad=grad, value_fn=f
        ...     )
        ...     return optax.apply_updates(x, updates), state
        >>> x = jnp.zeros(3)
        >>> state = solver.init(x)
        >>> for _ in range(10):
        ...     x, state = step(x, state)
        >>> bool(jnp.allclose(x, jnp.arange(3.), atol=1e-3))
        True

    References:
        Hager & Zhang, `A new conjugate gradient method with guaranteed descent and an
        efficient line search <https://doi.org/10.1137/030601880>`_, SIAM J. Optim.
        2005; `Algorithm 851: CG_DESCENT <https://doi.org/10.1145/1132973.1132979>`_,
        ACM TOMS 2006.
    """
    if line_search is None:
        line_search = scale_by_hager_zhang_line_search()
    arguments.check_transformation("line_search", line_search)
    return optax.chain(
        # Restarts after 6 n steps, as in CG_DESCENT: they matter for few parameters.
        scale_by_conjugate_direction(
            preconditioner, beta_rule=beta_rule, restart_cycles=6
        ),
        optax.scale(-1.0),
        line_search,
    )


def limited_memory_cg(
    memory_size: int = 10,
) -> optax.GradientTransformationExtraArgs:
    r"""Conjugate gradients that remember some steps, for a loss without noise.

    It is what :func:`nonlinear_cg` becomes with the limited-memory BFGS matrix as its
    preconditioner: that matrix maps :math:`y_k` to :math:`s_k`, so the Hager-Zhang
    coefficient is zero, and the direction is that of L-BFGS. With exact steps on a
    quadratic it is that of linear conjugate gradients. Steps are those of
    :func:`optax_nlcg.scale_by_hager_zhang_line_search`, which starts at the unit step
    where that has been right, and at the minimiser of a parabola elsewhere. It needs
    fewer evaluations than :func:`nonlinear_cg`, for more memory.

    Args:
        memory_size: number of steps remembered, at least 1.

    Returns:
        The optimizer. ``update`` needs ``params``, ``value``, ``grad`` and
        ``value_fn``. The state holds ``2 * memory_size + 3`` copies of the parameters.

    Raises:
        ValueError: if ``memory_size`` is less than 1.
        TypeError: if it is not an integer.

    Examples:
        >>> import jax.numpy as jnp, optax_nlcg
        >>> def f(x): return jnp.sum(jnp.cosh(x - jnp.arange(3.)))
        >>> solver = optax_nlcg.limited_memory_cg(memory_size=3)
        >>> result = optax_nlcg.minimize(f, jnp.zeros(3), solver=solver, tol=1e-3)
        >>> bool(result.converged)
        True

    References:
        Liu & Nocedal, `On the limited memory BFGS method for large scale optimization
        <https://doi.org/10.1007/BF01589116>`_, 1989; Hager & Zhang, `The limited memory
        conjugate gradient method <https://doi.org/10.1137/120898097>`_, SIAM J. Optim.
        2013.
    """
    arguments.check_number("memory_size", memory_size, low=1, integer=True)
    return optax.chain(
        scale_by_limited_memory(memory_size),
        optax.scale(-1.0),
        scale_by_hager_zhang_line_search(unit_step_tolerance=0.5),
    )
