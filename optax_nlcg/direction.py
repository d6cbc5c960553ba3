"""The conjugate direction: the stage that makes a preconditioned gradient into NLCG."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from optax_nlcg import arguments, tree
from optax_nlcg._preconditioner import Preconditioner
from optax_nlcg.beta import BetaRule, InnerProducts, get_beta_rule
from optax_nlcg.tree import Tree


class ConjugateDirectionState(NamedTuple):
    """State of :func:`scale_by_conjugate_direction`.

    Scalars have the widest real dtype of the parameters, at least float32.

    Attributes:
        count: number of steps taken, int32 scalar.
        since_restart: length of the current run of conjugate steps, int32 scalar; 1
            after a step along the preconditioned gradient alone.
        num_skipped: number of steps skipped for a gradient or a loss that was not
            finite, int32 scalar.
        beta: coefficient of the last step, scalar.
        gz: :math:`g'z` of the last step, scalar.
        slope: :math:`g'd` of the last step, scalar; negative.
        metric: :math:`d'P^{-1}d` of the last step, scalar.
        direction: :math:`-d` of the last step, like the parameters.
        previous_gradient: gradient of the last step, like the parameters; ``None``
            unless the rule or the restart test needs it.
        preconditioner: state of the preconditioner.
    """

    count: jax.typing.ArrayLike
    since_restart: jax.typing.ArrayLike
    num_skipped: jax.typing.ArrayLike
    beta: jax.Array
    gz: jax.Array
    slope: jax.Array
    metric: jax.Array
    direction: Tree
    previous_gradient: Tree
    preconditioner: Tree


def scale_by_conjugate_direction(
    preconditioner: optax.GradientTransformation | None = None,
    beta_rule: str | float | BetaRule = "fletcher_reeves",
    beta_bounds: tuple[float, float] | None = None,
    restart_every: int | None = None,
    restart_threshold: float | None = None,
    accumulator_dtype: DTypeLike | None = None,
    restart_cycles: float | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradient by the conjugate direction of preconditioned NLCG.

    With :math:`z_k = P_k g_k` the output of the preconditioner it computes

    .. math:: d_k = -z_k + \beta_k d_{k-1}, \qquad d_{-1} = 0,

    and returns :math:`-d_k`, which has the sign of the gradient as everywhere in Optax:
    chain :func:`optax.scale_by_learning_rate` after it. Inner products are over the
    whole tree and are taken in one pass. Where the direction would not descend
    (:math:`g_k'd_k \ge 0`) it starts anew, with :math:`\beta_k = 0`.

    With ``nesterov`` it returns :math:`z_k - \max(\beta_k, 0)\, d_k` instead, as
    :func:`optax.trace` does: the step follows the newest gradient more closely, and the
    direction that is kept is the same. Where that descends, so does the step.

    The gradient is taken from ``updates``. Preconditioning happens inside because the
    coefficient needs both :math:`g` and :math:`z`; any transformation will do, also one
    that needs ``params`` or extra arguments. It should act like multiplication by a
    symmetric positive definite matrix.

    If the gradient or the loss (``value``, if given) is not finite, the update is zero
    and the state stays as it was, but for ``num_skipped``.

    Args:
        preconditioner: transformation that computes :math:`z = P g`; by default
            :func:`optax.identity`.
        beta_rule: name of a rule in :data:`~optax_nlcg.beta.BETA_RULES`, a number for a
            constant :math:`\beta` (heavy ball), or an :class:`optax_nlcg.BetaRule`.
        beta_bounds: interval that :math:`\beta` is clipped to. ``None``: not clipped.
        restart_every: start anew after so many steps. ``None``: never.
        restart_threshold: start anew where :math:`|g_{k-1}'z_k| \ge \nu\, g_k'z_k`
            (Powell; 0.2 is usual), that is, where successive gradients are far from
            orthogonal. ``None``: no such test.
        accumulator_dtype: dtype of the stored direction. ``None``: the parameters'.
        restart_cycles: start anew after so many times the number of parameters, which
            is the number of steps that linear conjugate gradients need (6 is usual).
            ``None``: never.
        nesterov: whether to step along :math:`-z_k + \max(\beta_k, 0)\, d_k`, not
            :math:`d_k`.

    Returns:
        The transformation. Its state holds one copy of the parameters, two for rules
        that need the previous gradient and with ``restart_threshold``, and what the
        preconditioner holds.

    Raises:
        ValueError: if a rule is unknown or a number is out of range.
        TypeError: if an argument has the wrong type.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return 0.5 * jnp.sum(jnp.array([1., 10.]) * x**2)
        >>> tx = optax.chain(
        ...     optax_nlcg.scale_by_conjugate_direction(),
        ...     optax.scale_by_learning_rate(0.05),
        ... )
        >>> x = jnp.array([1., 1.])
        >>> state = tx.init(x)
        >>> for _ in range(40):
        ...     updates, state = tx.update(jax.grad(f)(x), state, x)
        ...     x = optax.apply_updates(x, updates)
        >>> bool(f(x) < 1e-3)
        True

    References:
        Adya, Palakkode & Tuzel, `Nonlinear Conjugate Gradients For Scaling Synchronous
        Distributed DNN Training <https://arxiv.org/abs/1812.02886>`_, 2018.

        Nocedal & Wright, `Numerical Optimization`, 2006, section 5.2.

        Sutskever, Martens, Dahl & Hinton, `On the importance of initialization and
        momentum in deep learning <https://proceedings.mlr.press/v28/sutskever13.html>`_,
        2013, section 2: Nesterov's step for a constant :math:`\beta`.
    """
    stage = "scale_by_conjugate_direction"
    if preconditioner is None:
        preconditioner = optax.identity()
    arguments.check_transformation("preconditioner", preconditioner)
    precondition = optax.with_extra_args_support(preconditioner)
    keeps_finite = isinstance(preconditioner, Preconditioner)
    rule = get_beta_rule(beta_rule)
    if beta_bounds is not None:
        _check_bounds(beta_bounds)
    if restart_every is not None:
        arguments.check_number("restart_every", restart_every, low=1, integer=True)
    if restart_cycles is not None:
        arguments.check_number("restart_cycles", restart_cycles, low=0, low_open=True)
    if restart_threshold is not None:
        arguments.check_number(
            "restart_threshold", restart_threshold, low=0, low_open=True
        )
    if accumulator_dtype is not None:
        arguments.check_real_dtype("accumulator_dtype", accumulator_dtype)
    arguments.check_flag("nesterov", nesterov)
    keeps_gradient = restart_threshold is not None or (
        rule.needs_previous_gradient or rule.needs_preconditioned_difference
    )

    def buffer(leaf: jax.Array) -> jax.Array:
        dtype = accumulator_dtype
        if dtype is not None and jnp.iscomplexobj(leaf):
            dtype = jnp.promote_types(dtype, jnp.complex64)
        return tree.full_like(leaf, 0, dtype)

    def init_fn(params: Tree) -> Tree:
        dtype = tree.scalar_dtype(params)
        return ConjugateDirectionState(
            count=jnp.zeros((), jnp.int32),
            since_restart=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
            beta=jnp.zeros((), dtype),
            gz=jnp.zeros((), dtype),
            slope=jnp.zeros((), dtype),
            metric=jnp.zeros((), dtype),
            direction=jax.tree.map(buffer, params),
            previous_gradient=tree.full_like(params, 0) if keeps_gradient else None,
            preconditioner=tree.lay_out_like(params, precondition.init(params)),
        )

    def update_fn(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        **extra_args: Any,
    ) -> tuple[Tree, Tree]:
        arguments.check_kind_of_state(stage, state, ConjugateDirectionState)
        tree.check_match(updates, state.direction, stage=stage)
        kept = state.previous_gradient is not None
        arguments.check_state(
            stage,
            kept == keeps_gradient,
            f"{'a' if kept else 'no'} previous gradient, and a `beta_rule` or "
            f"`restart_threshold` that needs {'none' if kept else 'one'} is given",
        )
        # Whether all is finite will show in g'z.
        first = extra_args | ({"_mask": False} if keeps_finite else {})
        z, preconditioner_state = precondition.update(
            updates, state.preconditioner, params, **first
        )

        pairs = {"gz": (updates, z), "gp": (updates, state.direction)}
        if keeps_gradient:
            y = tree.change(updates, state.previous_gradient)
            pairs |= {"yp": (y, state.direction), "yz": (y, z)}
            if rule.needs_preconditioned_difference:
                # The same P once more, so: the state after its update, and no
                # news of the curvature that would change it.
                again = first | {"hessian_diagonal": None}
                again |= {"_refresh": False} if keeps_finite else {}
                py, _ = precondition.update(y, preconditioner_state, params, **again)
                pairs["ypy"] = (y, py)
        dtype = state.gz.dtype
        zero = jnp.zeros((), dtype)
        products = tree.inner_products(list(pairs.values()), dtype)
        dot = dict(zip(pairs, products, strict=True))

        # Every entry of g and z takes part in g'z, so one scalar tells whether all are
        # finite. An overflow in the old direction only ends that direction.
        # Where the loss is not, no step is made that could be remembered.
        finite = jnp.isfinite(dot["gz"]) & arguments.loss_is_finite(extra_args)
        restart = (state.since_restart == 0) | ~jnp.isfinite(dot["gp"])
        gz, gp = dot["gz"], jnp.where(restart, 0, dot["gp"])
        yz = dot.get("yz", zero)
        if restart_every is not None:
            restart |= state.since_restart >= restart_every
        if restart_cycles is not None:
            # Cycles may be a narrow integer, the size a symbol of `jax.export`.
            cycles = jnp.asarray(restart_cycles).astype(dtype)
            longest = cycles * jnp.asarray(tree.size(updates), dtype)
            restart |= state.since_restart.astype(dtype) >= longest
        if restart_threshold is not None:
            restart |= jnp.abs(gz - yz) >= restart_threshold * gz

        beta = rule.compute(
            InnerProducts(
                gz=gz,
                gz_prev=state.gz,
                gd_prev=-gp,
                slope_prev=state.slope,
                yd_prev=-dot["yp"] if "yp" in dot else -gp - state.slope,
                yz=yz,
                ypy=dot.get("ypy", zero),
                metric_prev=state.metric,
            )
        )
        beta = jnp.asarray(beta).astype(dtype)
        if beta_bounds is not None:
            beta = jnp.clip(beta, *beta_bounds).astype(dtype)
        descends = gz + beta * gp > 0  # false for NaN as well
        # With P = I this is |d|^2: no entry of d overflows.
        descends &= jnp.isfinite(gz + 2 * beta * gp + beta**2 * state.metric)
        beta = jnp.where(restart | ~descends, 0, beta)

        def follow(beta, past):
            def leaf_direction(z_leaf, p_leaf):
                # Not z + 0 * p: p may hold what must be forgotten.
                return z_leaf + jnp.where(beta == 0, 0, beta * p_leaf)

            return jax.tree.map(leaf_direction, z, past)

        def conjugate(beta):
            direction = follow(beta, state.direction)
            if not nesterov:
                return direction, direction
            return direction, follow(jnp.maximum(beta, 0), direction)

        like = updates if params is None else params

        def fits(direction, step):
            return tree.fits(direction, state.direction) & tree.fits(step, like)

        direction, step = conjugate(beta)
        fitting = fits(direction, step)
        if fitting is not True:
            beta = jnp.where(fitting, beta, 0)
            direction, step = conjugate(beta)
            # A wider gradient may have no place in the parameters' dtype at all.
            finite &= fits(direction, step)
        new_state = ConjugateDirectionState(
            count=optax.safe_increment(state.count),
            since_restart=jnp.where(beta == 0, 1, state.since_restart + 1),
            num_skipped=state.num_skipped,
            beta=beta,
            gz=gz,
            slope=-(gz + beta * gp),
            metric=gz + 2 * beta * gp + beta**2 * state.metric,
            direction=tree.cast_like(direction, state.direction),
            previous_gradient=(
                tree.cast_like(updates, state.previous_gradient)
                if keeps_gradient
                else None
            ),
            preconditioner=preconditioner_state,
        )
        outputs = tree.cast_like(step, like)
        outputs, state = tree.skip_unless(finite, outputs, new_state, state)
        if keeps_finite:
            # Not selected: the old one would have to be kept until here.
            state = state._replace(preconditioner=preconditioner_state)
        return outputs, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_bounds(bounds: tuple[float, float]) -> None:
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise TypeError(
            f"`beta_bounds` must be a pair (least, greatest) or None, got {bounds!r}."
        )
    low, high = bounds
    arguments.check_number("beta_bounds[0]", low)
    arguments.check_number("beta_bounds[1]", high)
    if (
        not isinstance(low, jax.Array)
        and not isinstance(high, jax.Array)
        and low > high
    ):
        raise ValueError(
            f"`beta_bounds` must be (least, greatest), got {bounds!r}: reversed?"
        )
