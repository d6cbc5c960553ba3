"""A preconditioner from the Hessian's diagonal."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import arguments, shards, tree
from optax_nlcg._preconditioner import Preconditioner
from optax_nlcg.curvature import METHODS, hessian_diagonal
from optax_nlcg.moving_average import newest_weight
from optax_nlcg.tree import Tree

_ABSENT: Any = object()


class HessianDiagonalState(NamedTuple):
    """State of :func:`scale_by_hessian_diagonal`.

    Scalars have the widest real dtype of the parameters, at least float32.

    Attributes:
        count: number of steps, int32 scalar.
        num_refreshes: number of diagonals that entered the average, int32 scalar.
        num_skipped: number of gradients that were not finite and of diagonals left
            out, int32 scalar.
        average: average of the diagonals, like the parameters, in units of the
            curvature; a complex leaf holds the entry of the real part in its real part
            and that of the imaginary part in its imaginary part.
        curvature_mean: mean of the average's absolute values, scalar; 0 before the
            first diagonal.
        preconditioner_min: least entry of :math:`P`, scalar.
        preconditioner_mean: mean of the entries of :math:`P`, scalar.
        preconditioner_max: greatest entry of :math:`P`, scalar.
    """

    count: jax.typing.ArrayLike
    num_refreshes: jax.typing.ArrayLike
    num_skipped: jax.typing.ArrayLike
    average: Tree
    curvature_mean: jax.Array
    preconditioner_min: jax.Array
    preconditioner_mean: jax.Array
    preconditioner_max: jax.Array


def scale_by_hessian_diagonal(
    estimator: str | None = "hutchinson",
    decay: float = 0.9,
    update_every: int = 10,
    num_probes: int = 1,
    floor: float = 0.1,
    damping: float = 0.0,
    power: float = 1.0,
    normalize: bool = True,
    averaging: str = "row_norm",
    average_spatial: bool = False,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides by a running average of the Hessian's diagonal.

    With :math:`\bar d` the average of the estimates so far and :math:`m` the mean of
    its absolute values over all parameters,

    .. math::

        a_i = \max(|\bar d_i| / m,\ \mathrm{floor}), \qquad
        P_i = (a_i + \mathrm{damping})^{-\mathrm{power}}, \qquad z = P g .

    A typical entry of :math:`P` is of order one, so that a learning rate keeps its
    meaning; with ``normalize=False`` :math:`P` has the scale of the inverse Hessian:
    :math:`m^{-\mathrm{power}}` times the same. Until the first estimate :math:`P` is
    the identity.

    There are two ways to provide estimates, with the same results.

    The fast one: the training loop has two compiled steps. One of them, run on every
    tenth step or so, calls :func:`optax_nlcg.value_grad_and_hessian_diagonal` and
    passes ``update(..., hessian_diagonal=diagonal)``; the other passes ``None``, or
    nothing with ``estimator=None``.

    The convenient one: pass ``update(..., value_fn=value_fn)``, this batch's loss as a
    function of the parameters, at every step, and no ``hessian_diagonal``. On every
    ``update_every``-th step, the first included, the stage estimates the diagonal at
    ``params``, with the key ``jax.random.fold_in(jax.random.key(seed), step)``. Both
    steps are in one program; on CPU a branch makes XLA's convolutions slow.

    A new estimate changes the metric in which successive directions are conjugate. In
    stochastic training leave it at that. With exact steps on a full batch
    Fletcher-Reeves, whose coefficient would mix two metrics, must start anew at every
    estimate: ``scale_by_conjugate_direction(..., restart_every=update_every)``, which
    keeps step with the estimates while no step is skipped and nothing else restarts the
    direction. Rules that use the change of the gradient, such as Polak-Ribiere and
    Hager-Zhang, recover by themselves.

    An estimate is left out and counted if it is not finite, or the gradient or the loss
    (``value``, if given) of its step is not; a gradient that is not finite gives a zero
    update.

    Args:
        estimator: ``"hutchinson"``, ``"gauss_newton_bartlett"`` (``value_fn`` then
            returns ``(value, logits)``) or ``"exact"``, for the convenient way;
            ``None``: estimates are only ever given, even where another stage needs
            ``value_fn``.
        decay: decay of the average from one estimate to the next, in [0, 1); corrected
            for its start, so that the first estimate counts in full.
        update_every: steps from one estimate to the next, for the convenient way.
        num_probes: probes averaged in one estimate, for the convenient way.
        floor: least curvature relative to the mean, positive: no step along a
            direction is more than ``1 / floor`` times that of the mean curvature.
        damping: added to the curvature relative to the mean.
        power: exponent; 1 for Newton's scaling, 0.5 for a gentler one.
        normalize: whether :math:`P` is relative to the mean curvature.
        averaging: ``"signed"`` averages the estimates themselves: of Hutchinson's it
            tends to the diagonal, but slowly. ``"row_norm"`` takes the root of the
            average of their squares, as AdaHessian does: of Hutchinson's it tends to
            the norm of the Hessian's row, :math:`\sqrt{\sum_j H_{ij}^2}`.
        average_spatial: whether an estimate is averaged over the spatial axes of
            convolution kernels: all but the last two axes of arrays with four or more.
        seed: seed of the probes, for the convenient way.

    Returns:
        The transformation. Its state holds one copy of the parameters.

    Raises:
        ValueError: if an argument is out of range; in ``update`` if ``params`` is
            missing where an estimate is due, or a diagonal does not match.
        TypeError: if an argument has the wrong type.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return jnp.sum(jnp.array([1., 1e4]) * x**2)
        >>> tx = optax.chain(
        ...     optax_nlcg.scale_by_conjugate_direction(
        ...         optax_nlcg.scale_by_hessian_diagonal(floor=1e-6, normalize=False)
        ...     ),
        ...     optax.scale_by_learning_rate(1.0),
        ... )
        >>> x = jnp.array([1., 1.])
        >>> state = tx.init(x)
        >>> updates, state = tx.update(jax.grad(f)(x), state, x, value_fn=f)
        >>> bool(f(optax.apply_updates(x, updates)) < 1e-6)  # one step of Newton's
        True

    References:
        Yao et al., `AdaHessian <https://arxiv.org/abs/2006.00719>`_, 2021.

        Liu et al., `Sophia <https://arxiv.org/abs/2305.14342>`_, 2023.
    """
    stage = "scale_by_hessian_diagonal"
    if estimator is not None:
        arguments.check_choice("estimator", estimator, METHODS)
    arguments.check_number("decay", decay, low=0, high=1, high_open=True)
    arguments.check_number("update_every", update_every, low=1, integer=True)
    arguments.check_number("num_probes", num_probes, low=1, integer=True)
    arguments.check_number("floor", floor, low=0, low_open=True)
    arguments.check_number("damping", damping, low=0)
    arguments.check_number("power", power, low=0)
    arguments.check_choice("averaging", averaging, ("signed", "row_norm"))
    arguments.check_number("seed", seed, integer=True)
    for name, value in {
        "normalize": normalize,
        "average_spatial": average_spatial,
    }.items():
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` must be True or False, got {value!r}.")

    def init_fn(params: Tree) -> Tree:
        dtype = tree.scalar_dtype(params)
        return HessianDiagonalState(
            count=jnp.zeros((), jnp.int32),
            num_refreshes=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
            average=tree.full_like(params, 0),
            curvature_mean=jnp.zeros((), dtype),
            preconditioner_min=jnp.ones((), dtype),
            preconditioner_mean=jnp.ones((), dtype),
            preconditioner_max=jnp.ones((), dtype),
        )

    def factor(d: jax.Array, mean: jax.Array) -> jax.Array:
        """Entries of P for one leaf of the average."""
        safe_mean = jnp.where(mean > 0, mean, 1)
        relative = jnp.maximum(jnp.abs(d) / safe_mean, floor) + damping
        p = relative**-power
        if not normalize:
            p = p * safe_mean**-power
        return jnp.where(mean > 0, p, 1).astype(mean.dtype)

    def average_in(
        state: HessianDiagonalState,
        diagonal: Tree,
        gradient: Tree,
        loss_is_finite: bool | jax.Array,
    ) -> HessianDiagonalState:
        dtype = state.curvature_mean.dtype
        num_refreshes = optax.safe_increment(state.num_refreshes)
        weight = newest_weight(decay, num_refreshes, dtype)

        def blend(old, new):
            old, new = old.astype(dtype), jnp.asarray(new).astype(dtype)
            spatial = tuple(range(new.ndim - 2)) if new.ndim >= 4 else ()
            axes = spatial if average_spatial else ()
            if averaging == "row_norm":
                # Never a square by itself: it need not fit where the curvature does.
                parts = jnp.sqrt(1 - weight) * old, jnp.sqrt(weight) * _rms(new, axes)
                return jnp.hypot(*parts)
            return (1 - weight) * old + weight * jnp.mean(new, axes, keepdims=True)

        average = tree.map_components(blend, state.average, diagonal)
        average = tree.cast_like(average, state.average)
        sizes = jax.tree.map(lambda d: jnp.abs(_components(d).astype(dtype)), average)
        size = jnp.maximum(1, jnp.asarray(tree.size(average), dtype))
        bad = tree.count_not_finite(gradient, dtype)
        total, num_bad = tree.add_leaves([jax.tree.map(jnp.sum, sizes), bad], dtype)
        mean = total / size
        # P falls with the curvature: its extremes need no pass of their own.
        greatest, least = tree.greatest_leaves(
            [
                jax.tree.map(lambda x: jnp.max(x, initial=-jnp.inf), sizes),
                jax.tree.map(lambda x: -jnp.min(x, initial=jnp.inf), sizes),
            ],
            dtype,
        )
        factors = jax.tree.map(lambda x: jnp.sum(factor(x, mean)), sizes)
        new_state = state._replace(
            num_refreshes=num_refreshes,
            average=average,
            curvature_mean=mean,
            preconditioner_min=factor(greatest, mean),
            preconditioner_mean=tree.add_leaves([factors], dtype)[0] / size,
            preconditioner_max=factor(least, mean),
        )
        skipped_state = state._replace(
            num_skipped=optax.safe_increment(state.num_skipped)
        )
        usable = jnp.isfinite(mean) & (num_bad == 0) & loss_is_finite
        return tree.select(usable, new_state, skipped_state)

    def update_fn(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        value_fn: Any = None,
        hessian_diagonal: Tree = _ABSENT,
        _refresh: bool = True,
        _mask: bool = True,
        **extra_args: Any,
    ) -> tuple[Tree, Tree]:
        arguments.check_kind_of_state(stage, state, HessianDiagonalState)
        tree.check_match(updates, state.average, stage=stage)
        if not _refresh:
            return apply(updates, state, params), state
        step = updates, arguments.loss_is_finite(extra_args)
        if hessian_diagonal is _ABSENT:
            if estimator is not None:
                state = refresh_when_due(state, params, value_fn, estimator, *step)
        elif hessian_diagonal is not None:
            tree.check_match(
                hessian_diagonal, state.average, stage=stage, name="hessian_diagonal"
            )
            state = average_in(state, hessian_diagonal, *step)

        state = state._replace(count=optax.safe_increment(state.count))
        z = apply(updates, state, params)
        if _mask:
            (gz,) = tree.inner_products([(updates, z)], state.curvature_mean.dtype)
            z, state = tree.skip_unless(jnp.isfinite(gz), z, state, state)
        return z, state

    def apply(updates, state, params):
        mean = state.curvature_mean
        z = tree.map_components(
            lambda g, d: g * factor(d.astype(mean.dtype), mean), updates, state.average
        )
        return tree.cast_like(z, updates if params is None else params)

    def refresh_when_due(state, params, value_fn, method, *step):
        if shards.are_split():
            raise ValueError(
                f"{stage} inside `over_shards` makes no estimates itself: pass "
                "`update(..., hessian_diagonal=diagonal)`, or None in steps without "
                "one, or use `jit` with sharded arrays."
            )
        how = "update(grads, state, params, value_fn=value_fn)"
        for name, argument, what in (
            ("value_fn", value_fn, "this batch's loss as a function of the parameters"),
            ("params", params, "the parameters at which the curvature is wanted"),
        ):
            arguments.require(stage, name, argument, what=what, how=how)
        arguments.check_whole(stage, params)
        if method != "gauss_newton_bartlett":  # which wants the logits too
            value_fn = arguments.loss_alone(stage, value_fn)

        def refresh(state):
            key = jax.random.fold_in(jax.random.key(seed), state.count)
            diagonal = hessian_diagonal(
                value_fn, params, key, method=method, num_probes=num_probes
            )
            return average_in(state, diagonal, *step)

        due = state.count % update_every == 0
        return jax.lax.cond(due, refresh, lambda state: state, state)

    return Preconditioner(init_fn, update_fn)


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Root mean square over axes, which are kept."""
    if not axes:
        return jnp.abs(x)
    greatest = jnp.max(jnp.abs(x), axes, keepdims=True)
    relative = x / jnp.where(greatest > 0, greatest, 1)
    return greatest * jnp.sqrt(jnp.mean(relative**2, axes, keepdims=True))


def _components(x: jax.Array) -> jax.Array:
    """The real numbers that an array consists of."""
    return jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x
