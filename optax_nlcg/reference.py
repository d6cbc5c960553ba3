"""The authors' optimizer as their code runs it: to reproduce the paper, as an oracle.

It differs from the stages of this library, the same method in a cleaner form, in the
order in which a few things are read; :func:`ml_ncg` says which.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import arguments, loss_search, tree
from optax_nlcg.tree import Tree

_EPS = 1e-8
_LOSS_DECAY = 0.7
_MIN_SCALE = 1e-4


class MlNcgState(NamedTuple):
    """State of :func:`ml_ncg`.

    Scalars have the widest real dtype of the parameters, at least float32.

    Attributes:
        count: number of steps taken, int32 scalar.
        num_skipped: number of steps skipped for a loss or gradient that was not finite,
            int32 scalar.
        scale: the line search's factor on the learning rate, scalar.
        beta: coefficient of the last step, scalar.
        gz: :math:`g'Pg` of the last step, scalar.
        loss_average: exponential moving average of the loss, scalar.
        loss_reference: what the step search compares with next, the average at its last
            comparison, scalar.
        diagonal: diagonal Hessian estimate, like the parameters; ``None`` without it.
        previous_gradient: gradient of the last step; ``None`` without the estimate.
        previous_z: :math:`Pg` of the last step; ``None`` unless the rule is PR.
        direction: conjugate direction of the last step, before the line search.
    """

    count: jax.typing.ArrayLike
    num_skipped: jax.typing.ArrayLike
    scale: jax.Array
    beta: jax.Array
    gz: jax.Array
    loss_average: jax.Array
    loss_reference: jax.Array
    diagonal: Tree
    previous_gradient: Tree
    previous_z: Tree
    direction: Tree


def ml_ncg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    update_rule: str = "FR",
    precondition: str = "Bfgs",
    line_search: str = "Step",
    period: int = 5,
    threshold: float = 1.0,
    base_read: str = "start",
    lars_lr: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The authors' NLCG optimizer, as their TensorFlow code runs it.

    Step :math:`t`, with learning rate :math:`l_t`, scale :math:`b_t` (1 at first) and
    :math:`\epsilon = 10^{-8}`:

    .. math::

        s &= l_t b_t d_{t-1}, \quad y = g_t - g_{t-1}, \quad \sigma = s'(h s) \\
        h &\leftarrow \Big| h - \frac{(h s)^2 + \epsilon}{\sigma + \epsilon}
            + \frac{y^2 + \epsilon}{y's + \epsilon} \Big|
            \quad \text{if } y's \ge \epsilon \text{ and } \sigma \ge \epsilon \\
        z_t &= -g_t / (h + \epsilon), \quad
        \beta = \mathrm{clip}\Big(\frac{-g_t'z_t \;[+\, g_t'z_{t-1}]}
            {-g_{t-1}'z_{t-1} + \epsilon}, 0, 1\Big), \quad
        d_t = z_t + \beta d_{t-1} \\
        x_{t+1} &= x_t + l_t b_t \Big[(1 - \rho) d_t
            - \rho \frac{b_t}{b_{t+1}} d_{t-1}\Big]

    where the term in brackets belongs to the rule PR. In the first step :math:`z = -g`
    and :math:`\beta = 0`. What differs from the stages of this library: :math:`s` is
    made from the direction and the present learning rate, not from the step that was
    taken; the scale that the line search has just set acts one step late; where it
    cuts, the previous direction is taken back by :math:`\rho b_t / b_{t+1}`, up to 1.8
    times; and the step search compares the average before this loss with the one
    stored at the last comparison.

    One thing is added: a loss or gradient that is not finite gives a zero update and
    leaves the state as it was, but for ``num_skipped``.

    Args:
        learning_rate: a number or a schedule of the step count.
        update_rule: ``"FR"`` or ``"PR"``.
        precondition: ``"Bfgs"`` or ``"None"``.
        line_search: ``"Step"``, ``"Online"`` or ``"None"``.
        period: steps between comparisons of the step search.
        threshold: tolerance of the line search for a rising loss.
        base_read: whether a step uses the scale from its ``"start"`` or, which the
            authors' graph leaves open, the one that its line search sets, ``"end"``.
        lars_lr: coefficient of :func:`scale_by_lars`, applied to the gradient first.
            ``None``: not applied.

    Returns:
        The optimizer. ``update`` needs ``value=``, the loss of this step, unless the
        line search is ``"None"``, and ``params`` where ``lars_lr`` is given. The
        default state holds three copies of the parameters.

    Raises:
        ValueError: if an argument is not among those allowed; in ``update`` if
            ``value`` is missing.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return jnp.sum((x - 3.)**2)
        >>> optimizer = optax_nlcg.reference.ml_ncg(0.1)
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
        Distributed DNN Training <https://arxiv.org/abs/1812.02886>`_, 2018, and the
        authors' `code <https://github.com/apple/ml-ncg>`_.
    """
    arguments.check_learning_rate(learning_rate)
    arguments.check_choice("update_rule", update_rule, ("FR", "PR"))
    arguments.check_choice("precondition", precondition, ("Bfgs", "None"))
    arguments.check_choice("line_search", line_search, ("Step", "Online", "None"))
    arguments.check_number("period", period, low=1, integer=True)
    arguments.check_number("threshold", threshold, low=0, low_open=True)
    arguments.check_choice("base_read", base_read, ("start", "end"))
    growth = 1.02 if line_search == "Online" else 1.05

    def init_fn(params: Tree) -> Tree:
        dtype = tree.scalar_dtype(params)
        bfgs = precondition == "Bfgs"
        ones = functools.partial(tree.full_like, value=1)
        zeros = functools.partial(tree.full_like, params, 0)
        return MlNcgState(
            count=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
            scale=jnp.ones((), dtype),
            beta=jnp.zeros((), dtype),
            gz=jnp.zeros((), dtype),
            loss_average=jnp.zeros((), dtype),
            loss_reference=jnp.zeros((), dtype),
            diagonal=tree.map_components(ones, params) if bfgs else None,
            previous_gradient=zeros() if bfgs else None,
            previous_z=zeros() if update_rule == "PR" else None,
            direction=zeros(),
        )

    def search(state, loss):
        """The scale, the share taken back, and the loss averages after this step."""
        first = state.count == 0
        average = _LOSS_DECAY * state.loss_average + (1 - _LOSS_DECAY) * loss
        average = jnp.where(first, loss, average)
        if line_search == "Online":
            due, ratio, reference = True, loss / average, loss
        else:
            due = state.count % period == 0
            # At the first step both are zero, and the ratio is not used.
            ratio = state.loss_average / jnp.where(first, 1, state.loss_reference)
            reference = average
        due &= ~first
        reference = jnp.where(due | first, reference, state.loss_reference)

        dtype = state.scale.dtype

        def bound(edge):
            return jnp.asarray(1 + edge * threshold, dtype)

        # Exactly on the lowest edge, or where the ratio is NaN, nothing changes.
        scale, share = jnp.maximum(_MIN_SCALE, state.scale), jnp.zeros((), dtype)
        for edge, factor, taken_back in loss_search.BANDS:
            cut = jnp.maximum(_MIN_SCALE, factor * state.scale)
            scale = jnp.where(ratio > bound(edge), cut, scale)
            share = jnp.where(ratio > bound(edge), taken_back, share)
        grows = ratio < bound(loss_search.BANDS[0][0])
        scale = jnp.where(grows, jnp.minimum(1, growth * state.scale), scale)
        return (
            jnp.where(due, scale, state.scale),
            jnp.where(due, share, 0),
            average,
            reference,
        )

    def estimate_diagonal(state, updates, step_size):
        """The diagonal of the Hessian, from the change of the gradient."""
        s = jax.tree.map(lambda d: step_size * d, state.direction)
        y = jax.tree.map(jnp.subtract, updates, state.previous_gradient)
        hs = tree.map_components(jnp.multiply, state.diagonal, s)
        ys, shs = tree.inner_products([(y, s), (hs, s)], state.gz.dtype)
        curved = ~((ys < _EPS) | (shs < _EPS)) & (state.count > 0)

        def correct(h, hs, y):
            drop = (hs * hs + _EPS) / (shs + _EPS)
            gain = (y * y + _EPS) / (ys + _EPS)
            return jnp.where(curved, jnp.abs(h - drop + gain), h)

        diagonal = tree.map_components(correct, state.diagonal, hs, y)
        return tree.cast_like(diagonal, state.diagonal)

    def update_fn(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, Tree]:
        del extra_args
        arguments.check_kind_of_state("ml_ncg", state, MlNcgState)
        tree.check_match(updates, state.direction, stage="ml_ncg")
        dtype = state.gz.dtype
        first = state.count == 0
        finite = jnp.array(True)
        lr = learning_rate(state.count) if callable(learning_rate) else learning_rate
        lr = jnp.asarray(lr, dtype)

        scale, share = state.scale, jnp.zeros((), dtype)
        average, reference = state.loss_average, state.loss_reference
        if line_search != "None":
            arguments.require(
                "ml_ncg",
                "value",
                value,
                what="the loss of this step",
                how="update(..., value=loss)",
            )
            arguments.check_loss("ml_ncg", value)
            loss = jnp.asarray(value, dtype)
            finite = jnp.isfinite(loss)
            scale, share, average, reference = search(state, loss)
        step_size = lr * (state.scale if base_read == "start" else scale)

        diagonal, z = state.diagonal, updates
        if precondition == "Bfgs":
            diagonal = estimate_diagonal(state, updates, step_size)
            z = tree.map_components(
                lambda g, h: g * jnp.where(first, 1, 1 / (h + _EPS)), updates, diagonal
            )

        pairs = [(updates, z)]
        if update_rule == "PR":
            pairs += [(updates, state.previous_z)]
        gz, *g_previous_z = tree.inner_products(pairs, dtype)
        finite &= jnp.isfinite(gz)
        numerator = gz - sum(g_previous_z)
        beta = jnp.clip(numerator / (state.gz + _EPS), 0, 1)
        beta = jnp.where(first, 0, beta)
        direction = jax.tree.map(lambda z, d: beta * d - z, z, state.direction)

        new_size, old_size = lr * scale, lr * state.scale
        undo = (share > 0) & (new_size > _EPS)
        safe_size = jnp.where(undo, new_size, 1)

        def searched(d, d_old):
            mixed = (1 - share) * (new_size * d) - share * (old_size * d_old)
            return step_size * jnp.where(undo, mixed / safe_size, d)

        outputs = jax.tree.map(searched, direction, state.direction)
        outputs = tree.cast_like(outputs, updates if params is None else params)
        new_state = MlNcgState(
            count=optax.safe_increment(state.count),
            num_skipped=state.num_skipped,
            scale=scale,
            beta=beta,
            gz=gz,
            loss_average=average,
            loss_reference=reference,
            diagonal=diagonal,
            previous_gradient=_cast_if_kept(updates, state.previous_gradient),
            previous_z=_cast_if_kept(z, state.previous_z),
            direction=tree.cast_like(direction, state.direction),
        )
        return tree.skip_unless(finite, outputs, new_state, state)

    optimizer = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    if lars_lr is None:
        return optimizer
    return optax.chain(scale_by_lars(lars_lr), optimizer)


def scale_by_lars(
    lars_lr: float = 0.001,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales each tensor of the gradient by the authors' layer-wise rate.

    For a tensor :math:`w` with gradient :math:`g` and :math:`\eta` = ``lars_lr`` it is

    .. math:: g \leftarrow \frac{\eta |w|}{|g| + 10^{-8} + 0.1\, \eta |w|}\, g.

    Unlike :func:`optax.scale_by_trust_ratio`, to which it would reduce without the last
    term of the denominator, it leaves tensors that are zero at zero.

    Args:
        lars_lr: the coefficient, positive.

    Returns:
        The transformation, without state. ``update`` needs ``params``.

    Raises:
        ValueError: if the coefficient is not positive; in ``update`` if ``params`` is
            missing.

    Examples:
        >>> import jax.numpy as jnp, optax_nlcg
        >>> tx = optax_nlcg.reference.scale_by_lars(0.1)
        >>> w = jnp.array([3., 4.])
        >>> updates, _ = tx.update(jnp.array([0., 0.45]), tx.init(w), w)
        >>> print(updates)
        [0.    0.45]

    References:
        You, Gitman & Ginsburg, `Large Batch Training of Convolutional Networks
        <https://arxiv.org/abs/1708.03888>`_, 2017, with a weight decay of 0.1.
    """
    arguments.check_number("lars_lr", lars_lr, low=0, low_open=True)

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        arguments.require_params("scale_by_lars", params)

        def scale(g, w):
            g, w = jnp.asarray(g), jnp.asarray(w)
            g_norm = jnp.sqrt(tree.inner_products([(g, g)])[0])
            w_norm = jnp.sqrt(tree.inner_products([(w, w)])[0])
            rate = lars_lr * w_norm / (g_norm + _EPS + 0.1 * lars_lr * w_norm)
            return (rate * g).astype(g.dtype)

        return jax.tree.map(scale, updates, params), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update_fn
    )


def _cast_if_kept(new: Tree, kept: Tree):
    return None if kept is None else tree.cast_like(new, kept)
