"""A Flax training state whose optimizer sees more than the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

_ABSENT: Any = object()


class TrainState(train_state.TrainState):
    """Flax's ``TrainState``, with the extra arguments that Optax optimizers may need.

    Flax's own hands nothing but gradient and parameters to the optimizer; any further
    keyword of its ``apply_gradients`` replaces a field.

    Examples:
        >>> import jax, jax.numpy as jnp, optax_nlcg
        >>> from optax_nlcg.flax import TrainState
        >>> def loss_fn(params): return jnp.sum(params["w"] ** 2)
        >>> state = TrainState.create(
        ...     apply_fn=None, params={"w": jnp.ones(3)}, tx=optax_nlcg.nlcg(0.1)
        ... )
        >>> value, grads = jax.value_and_grad(loss_fn)(state.params)
        >>> state = state.apply_gradients(grads=grads, value=value)
        >>> print(state.params["w"], state.step)
        [0.8 0.8 0.8] 1
    """

    def apply_gradients(
        self,
        *,
        grads: optax.Updates,
        value: Any = None,
        value_fn: Any = None,
        hessian_diagonal: optax.Updates | None = _ABSENT,
        **kwargs: Any,
    ) -> "TrainState":
        """Takes one step.

        Args:
            grads: gradient, like ``params``; that of complex parameters conjugated, as
                Optax wants it. The optimizer gets it as ``grad`` too, as
                :func:`jax.grad` returns it.
            value: loss at ``params``, scalar.
            value_fn: function of the parameters that returns this batch's loss.
            hessian_diagonal: diagonal of the Hessian, like ``params``; ``None`` in a
                step that has none, so that no stage estimates one from ``value_fn``.
            **kwargs: fields of the state to replace, such as ``batch_stats``.

        Returns:
            The new state.
        """
        extra_args = {"value": value, "value_fn": value_fn}
        given = {name: arg for name, arg in extra_args.items() if arg is not None}
        if hessian_diagonal is not _ABSENT:
            given["hessian_diagonal"] = hessian_diagonal
        # Optax takes `MultiSteps`, which hands extra arguments on, for one without.
        accumulates = isinstance(self.tx, optax.MultiSteps)
        inner = self.tx if accumulates else optax.with_extra_args_support(self.tx)

        def update(updates, state, params=None):
            # Of `updates`: Flax has taken out what in `grads` overwrites parameters.
            seen = {"grad": jax.tree.map(jnp.conj, updates), **given}
            return inner.update(updates, state, params, **seen)

        bound = self.replace(tx=optax.GradientTransformation(inner.init, update))
        stepped = super(TrainState, bound).apply_gradients(grads=grads, **kwargs)
        return stepped.replace(tx=self.tx)
