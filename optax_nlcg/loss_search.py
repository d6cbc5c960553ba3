"""Line searches that need nothing but the loss of each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import arguments, tree
from optax_nlcg.tree import Tree

# Seven bands of the loss's relative rise: lower edge, in units of the threshold; factor
# that the scale is multiplied by; fraction of the last update that is taken back.
BANDS = (
    (0.01, 1.0, 0.1),
    (0.025, 0.975, 0.1),
    (0.05, 0.95, 0.2),
    (0.075, 0.9, 0.3),
    (0.10, 0.8, 0.5),
    (0.125, 0.7, 0.7),
    (0.15, 0.5, 0.9),
)


class LossLineSearchState(NamedTuple):
    """State of the line searches that watch the loss.

    Scalars have the widest real dtype of the parameters, at least float32.

    Attributes:
        count: number of losses seen, int32 scalar.
        num_skipped: number of steps skipped for a loss that was not finite, int32
            scalar.
        scale: the factor :math:`c` on updates, scalar in :math:`(0, 1]`.
        loss_average: exponential moving average of the loss, scalar.
        loss_reference: what the next comparison is made with, scalar.
        previous_update: the last update returned, like the parameters; ``None`` without
            rollback; empty in :func:`optax_nlcg.nlcg` with diagonal BFGS.
    """

    count: jax.typing.ArrayLike
    num_skipped: jax.typing.ArrayLike
    scale: jax.Array
    loss_average: jax.Array
    loss_reference: jax.Array
    previous_update: Tree


def scale_by_step_line_search(
    period: int = 5,
    threshold: float = 1.0,
    loss_decay: float = 0.7,
    rollback: bool = True,
    growth: float = 1.05,
    min_scale: float = 1e-4,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates down where the averaged loss rises from period to period.

    The stage keeps an average of the loss, :math:`e \leftarrow \lambda e + (1-\lambda)
    L`. Every ``period`` steps it takes the relative rise :math:`q = (e -
    e_{old})/|e_{old}|` since the last comparison, with :math:`\tau` the threshold, and
    moves the scale :math:`c`, one at the start:

    =================================== ====================== =====================
    rise                                scale                  fraction taken back
    =================================== ====================== =====================
    :math:`q \le .01\tau`               min(1, ``growth`` c)   0
    :math:`.01\tau < q \le .025\tau`    c                      .1
    :math:`.025\tau < q \le .05\tau`    .975 c                 .1
    :math:`.05\tau < q \le .075\tau`    .95 c                  .2
    :math:`.075\tau < q \le .10\tau`    .9 c                   .3
    :math:`.10\tau < q \le .125\tau`    .8 c                   .5
    :math:`.125\tau < q \le .15\tau`    .7 c                   .7
    :math:`q > .15\tau`                 .5 c                   .9
    =================================== ====================== =====================

    An update :math:`u` becomes :math:`(1-\rho)\, c\, u - \rho\, u_{old}`, with the new
    scale, :math:`\rho` the fraction and :math:`u_{old}` the last update returned. At
    most the fraction :math:`\rho` of what was applied is taken back; in the authors'
    code (:func:`optax_nlcg.reference.ml_ncg`) it can be more than all of it.

    Place it last, after the learning rate, as Optax's own line searches are placed:
    then :math:`u_{old}` is what was applied to the parameters. Before the learning rate
    the fraction is that only while the learning rate is constant.

    A loss that is not finite gives a zero update and leaves the state as it was, but
    for ``num_skipped``. Entries of an update that are not finite become zero.

    Args:
        period: steps from one comparison to the next.
        threshold: :math:`\tau`; a larger one tolerates larger rises.
        loss_decay: :math:`\lambda`, in [0, 1).
        rollback: whether to take back a part of the last update, at the price of one
            copy of the parameters.
        growth: factor on the scale where the loss does not rise, at least 1.
        min_scale: least scale, in (0, 1].

    Returns:
        The transformation. ``update`` needs ``value=``, the loss of this step.

    Raises:
        ValueError: if an argument is out of range; in ``update`` if ``value`` is
            missing.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return jnp.sum(x**2)
        >>> tx = optax.chain(  # a learning rate at which descent alone diverges
        ...     optax.scale_by_learning_rate(1.2),
        ...     optax_nlcg.scale_by_step_line_search(),
        ... )
        >>> x = jnp.array([1., 2.])
        >>> state = tx.init(x)
        >>> for _ in range(30):
        ...     value, grads = jax.value_and_grad(f)(x)
        ...     updates, state = tx.update(grads, state, x, value=value)
        ...     x = optax.apply_updates(x, updates)
        >>> bool(f(x) < 1e-3)
        True

    References:
        Adya, Palakkode & Tuzel, `Nonlinear Conjugate Gradients For Scaling Synchronous
        Distributed DNN Training <https://arxiv.org/abs/1812.02886>`_, 2018.
    """
    arguments.check_number("period", period, low=1, integer=True)

    def compare(count, value, average, reference):
        del value
        due = count % period == 0
        rise = _relative_rise(average, reference)
        return due, rise, jnp.where(due, average, reference)

    return _loss_line_search(
        "scale_by_step_line_search",
        compare,
        threshold=threshold,
        loss_decay=loss_decay,
        rollback=rollback,
        growth=growth,
        min_scale=min_scale,
    )


def scale_by_online_line_search(
    threshold: float = 1.0,
    loss_decay: float = 0.7,
    rollback: bool = True,
    growth: float = 1.02,
    min_scale: float = 1e-4,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates down where the loss is above its own average.

    The same as :func:`scale_by_step_line_search`, but every step, with the rise
    :math:`q = (L - e)/|e|` of this step's loss over the average :math:`e`, which
    already contains it.

    Args:
        threshold: :math:`\tau`; a larger one tolerates larger rises.
        loss_decay: decay :math:`\lambda` of the average, in [0, 1).
        rollback: whether to take back a part of the last update, at the price of one
            copy of the parameters.
        growth: factor on the scale where the loss is not above, at least 1.
        min_scale: least scale, in (0, 1].

    Returns:
        The transformation. ``update`` needs ``value=``, the loss of this step.

    Raises:
        ValueError: if an argument is out of range; in ``update`` if ``value`` is
            missing.

    Examples:
        >>> import optax, optax_nlcg
        >>> tx = optax.chain(
        ...     optax_nlcg.scale_by_conjugate_direction(),
        ...     optax.scale_by_learning_rate(0.1),
        ...     optax_nlcg.scale_by_online_line_search(),
        ... )

    References:
        Adya, Palakkode & Tuzel, `Nonlinear Conjugate Gradients For Scaling Synchronous
        Distributed DNN Training <https://arxiv.org/abs/1812.02886>`_, 2018.
    """

    def compare(count, value, average, reference):
        del count, reference
        return True, _relative_rise(value, average), average

    return _loss_line_search(
        "scale_by_online_line_search",
        compare,
        threshold=threshold,
        loss_decay=loss_decay,
        rollback=rollback,
        growth=growth,
        min_scale=min_scale,
    )


def _relative_rise(new: jax.Array, old: jax.Array) -> jax.Array:
    """(new - old) / |old|: new / old - 1, but right for negative losses as well."""
    scale = jnp.where(old == 0, 1, jnp.abs(old))
    return (new - old) / scale


def _loss_line_search(
    stage, compare, *, threshold, loss_decay, rollback, growth, min_scale
) -> optax.GradientTransformationExtraArgs:
    """The line search, given the comparison: is one due, the rise, the reference."""
    arguments.check_number("threshold", threshold, low=0, low_open=True)
    arguments.check_number("loss_decay", loss_decay, low=0, high=1, high_open=True)
    arguments.check_number("growth", growth, low=1)
    arguments.check_number("min_scale", min_scale, low=0, high=1, low_open=True)
    arguments.check_flag("rollback", rollback)

    def init_fn(params: Tree) -> Tree:
        dtype = tree.scalar_dtype(params)
        return LossLineSearchState(
            count=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
            scale=jnp.ones((), dtype),
            loss_average=jnp.zeros((), dtype),
            loss_reference=jnp.zeros((), dtype),
            previous_update=tree.full_like(params, 0) if rollback else None,
        )

    def update_fn(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, Tree]:
        del params, extra_args
        arguments.require(
            stage,
            "value",
            value,
            what="the loss of this step",
            how="update(..., value=loss)",
        )
        arguments.check_kind_of_state(stage, state, LossLineSearchState)
        arguments.check_state(
            stage,
            (state.previous_update is not None) == rollback,
            f"rollback={not rollback}, here it is {rollback}",
        )
        if rollback:
            tree.check_match(updates, state.previous_update, stage=stage)
        dtype = state.scale.dtype
        arguments.check_loss(stage, value)
        loss = jnp.asarray(value, dtype)
        finite = jnp.isfinite(loss)
        first = state.count == 0

        average = loss_decay * state.loss_average + (1 - loss_decay) * loss
        average = jnp.where(first, loss, average)
        reference = jnp.where(first, loss, state.loss_reference)
        due, rise, reference = compare(state.count, loss, average, reference)

        # Scalars, one by one: a lookup in an array is a gather under `vmap`, which
        # explicit meshes refuse. Below all edges the scale grows.
        scale, fraction = jnp.minimum(1, growth * state.scale), jnp.zeros((), dtype)
        for edge, factor, share in BANDS:
            above = rise > threshold * jnp.asarray(edge, dtype)
            cut = jnp.maximum(min_scale, factor * state.scale)
            scale = jnp.where(above, cut, scale)
            fraction = jnp.where(above, share, fraction)
        scale = jnp.where(due, scale, state.scale)
        fraction = jnp.where(due, fraction, 0)

        if rollback:
            outputs = jax.tree.map(
                lambda u, old: (1 - fraction) * scale * u - fraction * old,
                updates,
                state.previous_update,
            )
        else:
            outputs = jax.tree.map(lambda u: scale * u, updates)
        # Whether all entries of an update are finite is for the stage that makes it to
        # say; it would take another pass here. Those that are not count as zero.
        outputs = jax.tree.map(
            lambda u: jnp.where(jnp.isfinite(u), u, 0),
            tree.cast_like(outputs, updates),
        )

        new_state = LossLineSearchState(
            count=optax.safe_increment(state.count),
            num_skipped=state.num_skipped,
            scale=scale.astype(dtype),
            loss_average=average.astype(dtype),
            loss_reference=reference.astype(dtype),
            previous_update=(
                tree.cast_like(outputs, state.previous_update) if rollback else None
            ),
        )
        return tree.skip_unless(finite, outputs, new_state, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
