"""Value and gradient from a line search's state, whatever the dtype of the loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_nlcg import arguments
from optax_nlcg.tree import Tree


def value_and_grad_from_state(
    value_fn: Callable[..., jax.typing.ArrayLike],
) -> Callable[..., tuple[jax.typing.ArrayLike, Tree]]:
    """Takes value and gradient from the state of the search that ended there.

    It is :func:`optax.value_and_grad_from_state` with the value cast to the dtype that
    the state holds it in. That dtype is chosen from the parameters, before the loss is
    known. Where the loss has another one, as a loss in bfloat16 has, Optax's function
    fails for the two branches that differ. It also fails where parameters are called
    ``value``, as in attention layers of Flax. Where it does not, the two are the same.

    Args:
        value_fn: function ``value_fn(params, *args, **kwargs)`` to a real scalar.

    Returns:
        Function ``(params, *args, state, **kwargs)`` to the pair of value and gradient.
        They are computed only where the state's value is not finite.

    Raises:
        TypeError: if ``value_fn`` is not a function.
        KeyError: when called, if several line searches are in the state.
        ValueError: when called, if there is none that has ``value`` and ``grad``.

    Examples:
        >>> import jax.numpy as jnp, optax, optax_nlcg
        >>> def f(x): return jnp.sum((x - 1)**2)  # as x: bfloat16
        >>> solver = optax_nlcg.nonlinear_cg()
        >>> value_and_grad = optax_nlcg.value_and_grad_from_state(f)
        >>> x = jnp.zeros(2, jnp.bfloat16)
        >>> state = solver.init(x)
        >>> value, grad = value_and_grad(x, state=state)
        >>> updates, state = solver.update(
        ...     grad, state, x, value=value, grad=grad, value_fn=f
        ... )
        >>> print(optax.apply_updates(x, updates))
        [1 1]
    """
    arguments.check_function("value_fn", value_fn)

    def value_and_grad(
        params: Tree, *args: Any, state: Tree, **kwargs: Any
    ) -> tuple[jax.typing.ArrayLike, Tree]:
        # By both together: parameters may have a field of either name.
        searches = [
            node
            for node in jax.tree.leaves(state, is_leaf=_is_search)
            if _is_search(node)
        ]
        if not searches:
            raise ValueError(
                "Fields `value` and `grad` were not found in the state. It must be "
                f"that of a line search that calls `value_fn`, got {state!r:.200}."
            )
        if len(searches) > 1:
            raise KeyError(
                f"{len(searches)} line searches were found in the state, and each has "
                "a `value` of its own: give the state of one of them."
            )
        value, grad = searches[0].value, searches[0].grad

        def cast_fn(x):
            return jnp.asarray(value_fn(x, *args, **kwargs)).astype(value.dtype)

        return jax.lax.cond(
            jnp.isfinite(value),
            lambda _: (value, grad),
            jax.value_and_grad(cast_fn),
            params,
        )

    return value_and_grad


def _is_search(node: Any) -> bool:
    fields = getattr(node, "_fields", ())
    return "value" in fields and "grad" in fields and node.grad is not None
