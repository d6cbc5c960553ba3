"""Complete optimizers: thin chains of the stages."""

import optax

from optax_nlcg import arguments
from optax_nlcg.beta import BetaRule
from optax_nlcg.bfgs import scale_by_diagonal_bfgs
from optax_nlcg.direction import scale_by_conjugate_direction
from optax_nlcg.loss_search import scale_by_step_line_search
from optax_nlcg.wolfe_search import scale_by_hager_zhang_line_search


def nlcg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta_rule: str | float | BetaRule = "fletcher_reeves",
    beta_bounds: tuple[float, float] | None = (0.0, 1.0),
    preconditioner: optax.GradientTransformation | None = None,
    line_search: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic preconditioned nonlinear conjugate gradients.

    .. math::

        z_k = P_k g_k, \qquad d_k = -z_k + \beta_k d_{k-1}, \qquad
        x_{k+1} = x_k + \eta_k c_k d_k

    with a preconditioner :math:`P`, a conjugacy rule for :math:`\beta`, the learning
    rate :math:`\eta` and a line search's :math:`c`. The line search is the last stage,
    so any search that takes a descent update fits, Optax's included. The defaults are
    those of the paper.

    Args:
        learning_rate: a number or a schedule of the step count.
        beta_rule: see :func:`optax_nlcg.scale_by_conjugate_direction`.
        beta_bounds: interval that :math:`\beta` is clipped to, or ``None``.
        preconditioner: any Optax transformation; by default
            :func:`optax_nlcg.scale_by_diagonal_bfgs`; ``optax.identity()`` for none.
        line_search: transformation of the update; by default
            :func:`optax_nlcg.scale_by_step_line_search`; ``optax.identity()`` for none.

    Returns:
        The optimizer. With the default line search ``update`` needs ``value=``, the
        loss of this step, and with the default preconditioner ``params``. The default
        state holds five copies of the parameters.

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

    References:
        Adya, Palakkode & Tuzel, `Nonlinear Conjugate Gradients For Scaling Synchronous
        Distributed DNN Training <https://arxiv.org/abs/1812.02886>`_, 2018.
    """
    arguments.check_learning_rate(learning_rate)
    if preconditioner is None:
        preconditioner = scale_by_diagonal_bfgs()
    if line_search is None:
        line_search = scale_by_step_line_search()
    arguments.check_transformation("line_search", line_search)
    return optax.chain(
        scale_by_conjugate_direction(
            preconditioner, beta_rule=beta_rule, beta_bounds=beta_bounds
        ),
        optax.scale_by_learning_rate(learning_rate),
        line_search,
    )


def nonlinear_cg(
    *,
    beta_rule: str | float | BetaRule = "hager_zhang",
    preconditioner: optax.GradientTransformation | None = None,
    line_search: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(
        scale_by_conjugate_direction(
            preconditioner, beta_rule=beta_rule, restart_cycles=6
        ),
        optax.scale(-1.0),
        line_search or scale_by_hager_zhang_line_search(),
    )
