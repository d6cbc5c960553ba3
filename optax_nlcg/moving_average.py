"""Moving averages that need no correction for their start."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike


def newest_weight(decay: ArrayLike, number: ArrayLike, dtype: DTypeLike) -> jax.Array:
    r"""Weight of the newest of the numbers in an exponential moving average.

    With :math:`\bar x_n = (1 - w_n)\, \bar x_{n-1} + w_n x_n` and

    .. math:: w_n = \frac{1 - \lambda}{1 - \lambda^n}

    the average is what Adam's correction for the start makes of one that began at zero.

    Args:
        decay: decay :math:`\lambda`, in [0, 1).
        number: how many numbers there are, the newest included, at least one.
        dtype: real dtype of the result.

    Returns:
        The weight, scalar in (0, 1].

    Examples:
        >>> from optax_nlcg.moving_average import newest_weight
        >>> print(newest_weight(0.5, 2, "float32").round(4))  # 1 / 2 over 3 / 4
        0.6667

    References:
        Kingma & Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2015, section 3.
    """
    # What is forgotten, not what is kept: 1 - 1e-8 is one in float32.
    forgotten = jnp.asarray(1 - decay, dtype)
    kept = jnp.expm1(jnp.asarray(number, dtype) * jnp.log1p(-forgotten))
    return jnp.minimum(-forgotten / kept, 1)
