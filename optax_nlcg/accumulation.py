"""Gradient accumulation under which a line search sees the whole mini-batch's loss."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import arguments
from optax_nlcg.tree import (
    Tree,
    add_leaves,
    cast_like,
    count_not_finite,
    lay_out_like,
    scalar_dtype,
)


class MultiStepsState(NamedTuple):
    """State of :func:`multi_steps`.

    Attributes:
        multi_steps: state of :class:`optax.MultiSteps`; ``mini_step`` counts the
            microbatches of the current mini-batch.
        value_sum: sum of their losses, scalar, float32 or wider.
        num_skipped: number of microbatches left out because their gradient or their
            loss was not finite, int32 scalar.
    """

    multi_steps: optax.MultiStepsState
    value_sum: jax.Array
    num_skipped: jax.typing.ArrayLike


def multi_steps(
    optimizer: optax.GradientTransformation,
    every_k: int | Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
    r"""Updates once in ``every_k`` calls, with the mean gradient and the mean loss.

    This is :class:`optax.MultiSteps` for optimizers that look at the loss.
    ``MultiSteps`` itself averages the gradients but hands over the last microbatch's
    ``value`` alone, so that a line search mistakes the differences between microbatches
    for progress. Here :math:`k` microbatches of equal size are one mini-batch:

    .. math::
        g = \tfrac1k \textstyle\sum_i g_i, \qquad
        f = \tfrac1k \textstyle\sum_i f_i .

    The calls in between return zero updates. A microbatch whose gradient or loss is not
    finite is left out, as if it had never come, and counted.

    An argument ``grad`` becomes that of the mini-batch, the conjugate of :math:`g`.
    ``value_fn`` and ``hessian_diagonal`` are handed over as they are: those of a
    mini-batch's last call are used, so they must be the whole mini-batch's. A search
    that evaluates ``value_fn`` does so in every call, and discards all but the last:
    with such a search accumulate inside the loss function instead, by a ``lax.scan``
    over microbatches.

    Where parameters are split by hand, :func:`optax_nlcg.parallel.over_shards` goes
    around this, not inside: whether a microbatch is left out is for all devices to say.

    Args:
        optimizer: the optimizer to call once in ``every_k`` times.
        every_k: number of microbatches in a mini-batch, or a function that gives it
            from the number of updates done.

    Returns:
        An Optax transformation whose ``update`` takes ``value``, the loss of the
        microbatch, if the optimizer wants it.

    Raises:
        TypeError: if an argument is not what it should be.
        ValueError: if ``every_k`` is less than one; in ``init``, if some parameters are
            real and others complex; in ``update``, if ``value`` is not a scalar.

    Examples:
        >>> import jax.numpy as jnp, optax, optax_nlcg
        >>> optimizer = optax_nlcg.multi_steps(optax_nlcg.nlcg(0.1), every_k=2)
        >>> params = jnp.array([1.0])
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(
        ...     jnp.array([1.0]), state, params, value=jnp.array(0.5))
        >>> print(optax.apply_updates(params, updates))
        [1.]
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0]), state, params, value=jnp.array(0.7))
        >>> print(optax.apply_updates(params, updates))
        [0.8]
    """
    arguments.check_transformation("optimizer", optimizer)
    if not callable(every_k):
        arguments.check_number("every_k", every_k, low=1, integer=True)

    # Optax calls what is no Python integer.
    number = every_k if callable(every_k) else lambda _: every_k

    def accumulator(
        params: Tree, loss_is_finite: bool | jax.Array = True
    ) -> optax.MultiSteps:
        kinds = {jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(params)}
        if len(kinds) > 1:
            raise ValueError(
                "multi_steps sums all gradients in one dtype: parameters must be all "
                "real or all complex. Accumulate inside the loss function instead."
            )
        options: dict[str, Any] = {}
        # Older Optax sums in the parameters' dtype, newer in float32 unless told.
        if "accumulator_dtype" in inspect.signature(optax.MultiSteps).parameters:
            # Each dtype by itself: of weakly typed float64 float32 would remain.
            dtypes = map(jnp.result_type, jax.tree.leaves(params))
            options["accumulator_dtype"] = jnp.result_type(jnp.float32, *dtypes)

        def left_out(
            updates: Tree, gradient_step: Any, params: Tree | None
        ) -> tuple[Any, Any]:
            del gradient_step, params
            # On all devices that leaves are split over by hand: they leave it out
            # together. (Optax's own function sees one device's part.)
            bad = count_not_finite(updates, jnp.float32)
            (num_bad,) = add_leaves([bad], jnp.float32)
            skip = (num_bad > 0) | jnp.logical_not(loss_is_finite)
            return skip, {"should_skip": skip}

        return optax.MultiSteps(
            optimizer, number, should_skip_update_fn=left_out, **options
        )

    def init(params: Tree) -> MultiStepsState:
        return MultiStepsState(
            lay_out_like(params, accumulator(params).init(params)),
            jnp.zeros((), scalar_dtype(params)),
            jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Tree,
        state: Tree,
        params: Tree | None = None,
        *,
        value: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, MultiStepsState]:
        arguments.check_kind_of_state("multi_steps", state, MultiStepsState)
        count, value_sum = state.multi_steps.mini_step, state.value_sum
        sums = state.multi_steps.acc_grads
        # Older Optax wants gradients of the dtype that they are summed in.
        updates = cast_like(updates, sums)
        if extra_args.get("grad") is not None:
            mean = jax.tree.map(lambda a, g: a + (g - a) / (count + 1), sums, updates)
            extra_args["grad"] = jax.tree.map(jnp.conj, mean)
        if value is not None:
            arguments.check_loss("multi_steps", value)
            total = jnp.where(count == 0, 0, value_sum) + value
            value_sum = total.astype(value_sum.dtype)
            extra_args["value"] = value_sum / (count + 1).astype(value_sum.dtype)
        inner = accumulator(sums, arguments.loss_is_finite({"value": value}))
        updates, new = inner.update(updates, state.multi_steps, params, **extra_args)
        left_out = cast(dict, new.skip_state)["should_skip"]
        value_sum = jnp.where(left_out, state.value_sum, value_sum)
        num_skipped = state.num_skipped + left_out.astype(jnp.int32)
        return updates, MultiStepsState(new, value_sum, num_skipped)

    return optax.GradientTransformationExtraArgs(init, update)
