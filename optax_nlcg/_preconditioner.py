"""What a preconditioner may promise to the conjugate direction that wraps it."""

import optax


class Preconditioner(optax.GradientTransformationExtraArgs):
    r"""A transformation :math:`z = P g` with a matrix that can be applied anew cheaply.

    Any Optax transformation can be the ``preconditioner`` of
    :func:`optax_nlcg.scale_by_conjugate_direction`. One of this type costs less there:
    fewer passes over memory, and fewer sums over devices if parameters are split.

    Attributes:
        init: as in Optax: makes a state from parameters.
        update: as in Optax, with two more arguments, named so that no other argument
            of a training loop is taken for them. ``_refresh=False``: apply the
            :math:`P` of the state to ``updates`` and learn nothing; the state is
            returned as it is. ``_mask=False``: do not look whether the gradient is
            finite in order to return zeros; the caller looks at :math:`g'z` and skips
            the step. With either, nothing of a step whose gradient or loss is not
            finite may enter the state, for the caller does not restore it.

    Examples:
        >>> import jax.numpy as jnp, optax_nlcg
        >>> from optax_nlcg._preconditioner import Preconditioner
        >>> tx = optax_nlcg.scale_by_hessian_diagonal()
        >>> isinstance(tx, Preconditioner)
        True
        >>> x = jnp.ones(4)
        >>> d = jnp.array([1., 1., 2., 4.])
        >>> _, state = tx.update(x, tx.init(x), x, hessian_diagonal=d)
        >>> z, _ = tx.update(d, state, x, _refresh=False)
        >>> print(z)  # d over d / mean(d)
        [2. 2. 2. 2.]
    """

    __slots__ = ()
