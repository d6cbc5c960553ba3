"""The paper's preconditioner: the diagonal of a BFGS approximation of the Hessian."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_nlcg import arguments, tree
from optax_nlcg._preconditioner import Preconditioner
from optax_nlcg.tree import Tree


class DiagonalBfgsState(NamedTuple):
    """State of :func:`scale_by_diagonal_bfgs`.

    Attributes:
        count: number of gradients seen, int32 scalar.
        num_skipped: number of gradients or losses that were not finite, int32 scalar.
        diagonal: estimate :math:`h` of the Hessian's diagonal, like the parameters; a
            complex leaf holds the entry of the real part in its real part and that of
            the imaginary part in its imaginary part.
        previous_params: parameters of the last step.
        previous_gradient: gradient of the last step, like the parameters.
    """

    count: jax.typing.ArrayLike
    num_skipped: jax.typing.ArrayLike
    diagonal: Tree
    previous_params: Tree
    previous_gradient: Tree


def scale_by_diagonal_bfgs(
    initial: float = 1.0, eps: float = 1e-8, curvature_eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    r"""Divides by the diagonal of a BFGS approximation of the Hessian.

    With :math:`s` the step that was really taken, the difference of the parameters, and
    :math:`y` the difference of the gradients, elementwise but for the two sums,

    .. math::

        h \leftarrow \Big| h - \frac{(h s)^2}{s'(h s)} + \frac{y^2}{y's} \Big|,
        \qquad z = \frac{g}{h + \epsilon}.

    A gradient that is not finite, or a loss (``value``, if given), gives zero and
    leaves the state as it was, but for ``num_skipped``. The estimate is left alone in
    steps whose curvature :math:`y's` or whose :math:`s'(h s)` is below
    ``curvature_eps``. The two corrections are those of the full matrix; spread over a
    diagonal they are small in high dimensions, so that on networks :math:`h` stays
    close to ``initial``.

    It is meant to be the ``preconditioner`` of
    :func:`optax_nlcg.scale_by_conjugate_direction`, and works alone as a scaled
    gradient method.

    Args:
        initial: value of all entries of :math:`h` at the start.
        eps: added to :math:`h` before it divides.
        curvature_eps: least :math:`y's` and :math:`s'(h s)` for an update of :math:`h`,
            in units of the loss.

    Returns:
        The transformation. ``update`` needs ``params``. The state holds three copies
        of the parameters.

    Raises:
        ValueError: if an argument is out of range; in ``update`` if ``params`` is
            missing.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, optax_nlcg
        >>> tx = optax.chain(
        ...     optax_nlcg.scale_by_diagonal_bfgs(), optax.scale_by_learning_rate(0.1)
        ... )
        >>> x = jnp.array([2.])
        >>> state = tx.init(x)
        >>> for _ in range(3):  # minimize 5 x^2; the second step finds h = 10
        ...     updates, state = tx.update(10 * x, state, x)
        ...     x = optax.apply_updates(x, updates)
        >>> print(state[0].diagonal)
        [10.]

    References:
        Adya, Palakkode & Tuzel, `Nonlinear Conjugate Gradients For Scaling Synchronous
        Distributed DNN Training <https://arxiv.org/abs/1812.02886>`_, 2018.
    """
    arguments.check_number("initial", initial, low=0, low_open=True)
    arguments.check_number("eps", eps, low=0)
    arguments.check_number("curvature_eps", curvature_eps, low=0)
    stage = "scale_by_diagonal_bfgs"

    def init_fn(params: Tree) -> Tree:
        return DiagonalBfgsState(
            count=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
            diagonal=tree.map_components(lambda x: tree.full_like(x, initial), params),
            previous_params=tree.full_like(params, 0),
            previous_gradient=tree.full_like(params, 0),
        )

    def update_fn(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        _refresh: bool = True,
        _mask: bool = True,
        **extra_args: Any,
    ) -> tuple[Tree, Tree]:
        arguments.require_params(stage, params)
        arguments.check_kind_of_state(stage, state, DiagonalBfgsState)
        tree.check_match(updates, state.diagonal, stage=stage)

        def divide(diagonal):
            z = tree.map_components(lambda g, h: g / (h + eps), updates, diagonal)
            return tree.cast_like(z, params)

        if not _refresh:
            return divide(state.diagonal), state

        def differences(state):
            s = jax.tree.map(jnp.subtract, params, state.previous_params)
            y = tree.change(updates, state.previous_gradient)
            return s, y, tree.map_components(jnp.multiply, state.diagonal, s)

        s, y, hs = differences(state)
        ys, shs = tree.inner_products([(y, s), (hs, s)], tree.scalar_dtype(params))
        # The differences once more, from buffers that the compiler takes for others: it
        # would keep those of the first pass in memory until the second. Not from other
        # parameters: whoever calls may want to compare the old ones with the new.
        state = state._replace(
            diagonal=tree.conceal(state.diagonal),
            previous_gradient=tree.conceal(state.previous_gradient),
        )
        s, y, hs = differences(state)

        # Every entry of g takes part in y's, also where s = 0: 0 * Inf is NaN.
        finite = jnp.isfinite(ys) & arguments.loss_is_finite(extra_args)
        curved = (ys >= curvature_eps) & (shs >= curvature_eps) & (ys > 0) & (shs > 0)
        curved &= finite & jnp.isfinite(shs) & (state.count > 0)
        safe_ys, safe_shs = jnp.where(curved, ys, 1), jnp.where(curved, shs, 1)

        def correct(h, hs, y, g):
            corrected = jnp.abs(h - hs * (hs / safe_shs) + y * (y / safe_ys))
            corrected = corrected.astype(h.dtype)
            # An entry may overflow, in float16 above all; it would never come back.
            h = jnp.where(curved & jnp.isfinite(corrected), corrected, h)
            # Nor would one so small that the gradient overflows by it: that step is
            # skipped, and without steps there are no corrections.
            fits = jnp.isfinite((g / (h + eps)).astype(h.dtype))
            return jnp.where(fits | ~finite, h, jnp.asarray(initial, h.dtype))

        # Without a finite y's there is nothing to correct, so it needs no selection.
        diagonal = tree.map_components(correct, state.diagonal, hs, y, updates)
        new_state = DiagonalBfgsState(
            count=optax.safe_increment(state.count),
            num_skipped=state.num_skipped,
            diagonal=None,
            previous_params=params,
            previous_gradient=tree.cast_like(updates, state.previous_gradient),
        )
        z = divide(diagonal)
        masked, new_state = tree.skip_unless(
            finite, z, new_state, state._replace(diagonal=None)
        )
        return masked if _mask else z, new_state._replace(diagonal=diagonal)

    return Preconditioner(init_fn, update_fn)
