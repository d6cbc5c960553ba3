"""A line search by curvature along the update: no learning rate to choose."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_nlcg import arguments, tree
from optax_nlcg.moving_average import newest_weight
from optax_nlcg.tree import Tree

# Never zero: a step of length zero would give the next batch nothing to judge.
_LEAST_TRUST = 1e-3

# How much longer than the last a step may be whose curvature has not been measured. At
# the start of training curvature grows fast.
_GROWTH = 2


class CurvatureLineSearchState(NamedTuple):
    r"""State of :func:`scale_by_curvature_line_search`.

    Slopes and curvatures are per unit of Euclidean length along the update. Scalars
    have the widest real dtype of the parameters, at least float32.

    Attributes:
        count: number of steps taken, int32 scalar.
        num_skipped: number of steps skipped because the slope, the curvature or the
            step itself was not finite, int32 scalar.
        scale: the last factor :math:`c` on an update, scalar.
        trust: average :math:`\rho` of what updates held of what they promised, scalar;
            1 at the start.
        curvature: average curvature :math:`\bar\kappa` along updates, scalar.
        slope: slope of the last update on its own batch, scalar; negative if the update
            descends.
        slope_change: by how much the last update flattened its own slope, by the
            quadratic model, scalar.
        step_length: length of the last update returned, scalar.
        previous_update: the last update returned, like the parameters.
    """

    count: jax.typing.ArrayLike
    num_skipped: jax.typing.ArrayLike
    scale: jax.Array
    trust: jax.Array
    curvature: jax.Array
    slope: jax.Array
    slope_change: jax.Array
    step_length: jax.Array
    previous_update: Tree


def scale_by_curvature_line_search(
    update_every: int = 1,
    decay: float = 0.95,
    damping: float = 0.0,
    max_step: float = np.inf,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales an update to the minimum of the quadratic model along it.

    With :math:`g` and :math:`H` the gradient and Hessian of this step's batch, an
    update :math:`u` becomes :math:`c\,u`,

    .. math::

        c = \frac{|g'u|}{(\bar\kappa + \lambda) |u|^2},

    so its length does not depend on that of :math:`u`, and no learning rate needs to be
    chosen. :math:`\bar\kappa` is the average over steps of the curvature per unit
    length, :math:`\kappa = |u'Hu| / |u|^2`, in which negative curvature counts by its
    size. :math:`Hu` is one derivative of the gradient along :math:`u`.

    On a mini-batch this would be far too long: :math:`u` was made of the gradient of
    the very batch that it is judged by, and most of :math:`g'u` may be noise. The
    damping :math:`\lambda` takes care of that. The next batch knows nothing of the
    noise in :math:`u`. Its gradient :math:`g_+` along :math:`u`, less the change that
    the step has made, is the slope found where :math:`g'u` was promised, and

    .. math::

        \rho = \overline{\frac{g_+'u - c\,u'Hu}{g'u}},
        \qquad
        \lambda = \bar\kappa\,\Big(\frac{1 + \mathrm{damping}}{\rho} - 1\Big)

    gives the damping for which the slope at the end of a step vanishes on the next
    batch, on average. To first order :math:`\rho` is the ratio of actual to predicted
    reduction by which Levenberg, Marquardt and Moller adapt their damping, with the
    actual one measured on another batch. Their rule, which damps more and more while
    the ratio is below one quarter, would stop for good where three quarters of the
    gradient are noise. The ratio of a step is clipped to [-1, 2], the average, where it
    is used, to [.001, 1]. On a quadratic without noise it is one, and with ``decay=0``
    the search is then exact.

    Place it last: nothing but a change of sign may follow it, which an update that
    ascends is taken to have behind it. It descends if the update does.

    Args:
        update_every: steps from one Hessian-vector product to the next. The steps
            between cost a few inner products if they are given ``grad``; none of them
            is more than twice as long as the step before.
        decay: decay of the averages, in [0, 1). Zero for full batches.
        damping: further damping, relative to the average curvature, not negative.
        max_step: greatest length :math:`|c\,u|` of a step. Give one if there are
            regions without any curvature.

    Returns:
        The transformation. ``update`` needs ``params`` and ``value_fn=``, this batch's
        loss as a function of the parameters; ``grad=``, its gradient at ``params`` as
        :func:`jax.grad` returns it, saves one evaluation in steps without
        Hessian-vector product. The state holds one copy of the parameters.

        A step is skipped, with a zero update, and counted where slope or curvature is
        not finite, or where there is so little curvature that the step is not, and
        ``max_step`` is infinite.

    Raises:
        ValueError: if an argument is out of range; in ``update`` if one is missing.
        TypeError: if an argument has the wrong type.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return jnp.sum(jnp.array([1., 10., 100.]) * x**2)
        >>> tx = optax.chain(
        ...     optax_nlcg.scale_by_conjugate_direction(),
        ...     optax.scale_by_learning_rate(1.0),  # for its sign
        ...     optax_nlcg.scale_by_curvature_line_search(decay=0.0),
        ... )
        >>> x = jnp.ones(3)
        >>> state = tx.init(x)
        >>> for _ in range(3):  # linear conjugate gradients: three steps
        ...     updates, state = tx.update(jax.grad(f)(x), state, x, value_fn=f)
        ...     x = optax.apply_updates(x, updates)
        >>> bool(f(x) < 1e-6)
        True

    References:
        Moller, `A scaled conjugate gradient algorithm for fast supervised learning
        <https://doi.org/10.1016/S0893-6080(05)80056-5>`_, 1993.

        Schraudolph & Graepel, `Conjugate directions for stochastic gradient descent
        <https://doi.org/10.1007/3-540-46084-5_218>`_, 2002.
    """
    stage = "scale_by_curvature_line_search"
    arguments.check_number("update_every", update_every, low=1, integer=True)
    arguments.check_number("decay", decay, low=0, high=1, high_open=True)
    arguments.check_number("damping", damping, low=0)
    arguments.check_number("max_step", max_step, low=0, low_open=True)
    always = not isinstance(update_every, jax.Array) and update_every == 1

    def init_fn(params: Tree) -> Tree:
        zero = jnp.zeros((), tree.scalar_dtype(params))
        return CurvatureLineSearchState(
            count=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
            scale=jnp.ones_like(zero),
            trust=jnp.ones_like(zero),
            curvature=zero,
            slope=jnp.zeros_like(zero),
            slope_change=jnp.zeros_like(zero),
            step_length=jnp.zeros_like(zero),
            previous_update=tree.full_like(params, 0),
        )

    def update_fn(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        value_fn: Any = None,
        grad: Tree = None,
        **extra_args: Any,
    ) -> tuple[Tree, Tree]:
        del extra_args
        how = "update(grads, state, params, value_fn=value_fn)"
        arguments.require(stage, "params", params, what="the parameters", how=how)
        arguments.require(
            stage,
            "value_fn",
            value_fn,
            what="this batch's loss as a function of the parameters",
            how=how,
        )
        arguments.check_whole(stage, params)
        arguments.check_kind_of_state(stage, state, CurvatureLineSearchState)
        tree.check_match(updates, state.previous_update, stage=stage)
        dtype = state.scale.dtype
        previous = state.previous_update

        loss = arguments.loss_alone(stage, value_fn)

        def products(pairs):
            return tree.inner_products(pairs, dtype)

        def with_curvature():
            # JAX's gradients of complex parameters are conjugate, and so is Hu.
            direction = tree.cast_like(updates, params)
            g, hu = map(_conjugate, jax.jvp(jax.grad(loss), (params,), (direction,)))
            dots = products(
                [(updates, updates), (g, updates), (g, previous), (hu, updates)]
            )
            return tuple(dots)

        def without_curvature():
            g = _conjugate(jax.grad(loss)(params) if grad is None else grad)
            dots = products([(updates, updates), (g, updates), (g, previous)])
            return *dots, jnp.zeros_like(dots[0])

        if always:
            due = True
            uu, gu, g_previous, uhu = with_curvature()
        else:
            due = state.count % update_every == 0
            uu, gu, g_previous, uhu = jax.lax.cond(
                due, with_curvature, without_curvature
            )
        safe_uu = jnp.where(uu > 0, uu, 1)
        length = jnp.sqrt(safe_uu)
        slope = gu / length

        weight = newest_weight(decay, state.count // update_every + 1, dtype)
        kappa = uhu / safe_uu
        average = state.curvature + weight * (jnp.abs(kappa) - state.curvature)
        curvature = jnp.where(due, average, state.curvature)
        kappa = jnp.where(due, kappa, curvature)

        # What this batch says of the last update. An outlier counts for a step that was
        # twice too long or too short.
        promised = jnp.abs(state.slope)
        moved = jnp.where(state.step_length > 0, state.step_length, 1)
        found = jnp.sign(state.slope) * g_previous / moved + state.slope_change
        ratio = jnp.clip(found / jnp.where(promised > 0, promised, 1), -1, 2)
        trust = jnp.maximum(0, decay * state.trust + (1 - decay) * ratio)
        trust = jnp.where(promised > 0, trust, state.trust).astype(dtype)

        damped = (curvature * (1 + damping)).astype(dtype)
        trusted_slope = jnp.clip(trust, _LEAST_TRUST, 1) * jnp.abs(slope)
        minimum = trusted_slope / jnp.where(damped > 0, damped, 1)
        longest = jnp.where(due, jnp.inf, _GROWTH * state.step_length)
        longest = jnp.minimum(longest, max_step).astype(dtype)
        step_length = jnp.minimum(jnp.where(damped > 0, minimum, jnp.inf), longest)
        scale = step_length / length

        scaled = jax.tree.map(lambda u: scale * u, updates)
        finite = jnp.isfinite(scale) & jnp.isfinite(uhu) & jnp.isfinite(g_previous)
        finite &= tree.fits(scaled, params)
        usable = finite & (uu > 0)
        outputs = jax.tree.map(lambda u: jnp.where(usable, u, 0), scaled)
        outputs = tree.cast_like(outputs, params)
        new_state = CurvatureLineSearchState(
            count=optax.safe_increment(state.count),
            num_skipped=state.num_skipped,
            scale=scale,
            trust=trust,
            curvature=curvature,
            slope=slope,
            slope_change=step_length * kappa,
            step_length=step_length,
            previous_update=tree.cast_like(outputs, previous),
        )
        # At a minimum the update is zero, and nothing is wrong.
        measured = jnp.isfinite(gu) & jnp.isfinite(uhu) & jnp.isfinite(g_previous)
        failed = ~finite & ~(measured & (uu == 0))
        kept_state = state._replace(
            num_skipped=state.num_skipped + failed.astype(jnp.int32)
        )
        return outputs, tree.select(usable, new_state, kept_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _conjugate(values: Tree) -> Tree:
    return jax.tree.map(jnp.conj, values)
