"""Muon's metric as a preconditioner: the nearest orthogonal matrix of a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from optax_nlcg import shards
from optax_nlcg.tree import Tree

# Entries of an update have this root mean square, a usual one for Adam's updates, so
# that one learning rate suits matrices and all else (Liu et al., 2025, equation 4).
_RMS = 0.2

# Of x -> a x + b x^3 + c x^5, Muon's. The slope at zero is large, so that few steps
# do, at the price that large singular values move about one.
_COEFFICIENTS = 3.4445, -4.7750, 2.0315
_NUM_STEPS = 5

# Of the squares that scale what is not a matrix; Adam's default.
_DECAY = 0.999


def scale_by_orthogonalization(
    matrices: Tree | Callable[[Tree], Tree] | None = None,
) -> optax.GradientTransformation:
    r"""Replaces the gradient of each matrix by the nearest orthogonal one.

    With the singular values :math:`S` of an :math:`m \times n` gradient,

    .. math::

        G = U S V', \qquad
        Z = P G = 0.2 \sqrt{\max(m, n)}\; U V', \qquad P \propto (G G')^{-1/2},

    the direction of steepest descent for the spectral norm, as in Muon but without
    Muon's average of gradients, whose place the conjugate direction takes: it is meant
    to be the ``preconditioner`` of :func:`optax_nlcg.nlcg`. There :math:`g'z` is, but
    for the factor, the sum of the singular values. :math:`U V'` is that of Optax's
    ``muon``: five steps of an iteration that brings singular values to between about
    0.7 and 1.2. Arrays with more than two axes are matrices with a column for each
    index of the last, as suits kernels of convolutions. All that is no matrix is scaled
    as by Adam, without its average of gradients.

    The metric is that of each gradient. Rules for beta that apply it to a difference of
    gradients, ``hager_zhang``, get that of the difference instead.

    Learning rates are of the kind of Adam's. The length of :math:`Z` does not depend on
    that of the gradient, so they have to fall towards the end of a run.

    Args:
        matrices: which arrays are matrices: a tree of bools like the parameters, or a
            function of the parameters that returns one. By default all real arrays with
            two axes or more; embeddings and output layers are often left out.

    Returns:
        The transformation. The state holds one copy of those parameters that are not
        matrices. Under ``jit`` matrices may be split over devices; products of a
        matrix with itself then cross the network.

    Raises:
        TypeError: if ``matrices`` is neither a tree of bools nor a function.
        ValueError: in ``init`` or ``update``, if ``matrices`` does not fit the
            parameters or chooses an array with less than two axes, a complex one, or
            one that is split over devices by hand.

    Examples:
        >>> import jax.numpy as jnp, optax_nlcg
        >>> gradient = jnp.diag(jnp.array([3.0, 0.5]))
        >>> tx = optax_nlcg.scale_by_orthogonalization()
        >>> z, _ = tx.update(gradient, tx.init(gradient))
        >>> print((z / (0.2 * 2**0.5)).round(1))
        [[0.7 0. ]
         [0.  1. ]]

        Around Muon's metric, with a schedule of one's own:

        >>> import optax
        >>> optimizer = optax_nlcg.nlcg(
        ...     optax.linear_schedule(0.05, 0.0, transition_steps=1000),
        ...     preconditioner=optax_nlcg.scale_by_orthogonalization(),
        ... )

    References:
        Jordan et al., `Muon: An optimizer for hidden layers in neural networks
        <https://kellerjordan.github.io/posts/muon/>`_, 2024.

        Bernstein & Newhouse, `Old Optimizer, New Norm: An Anthology
        <https://arxiv.org/abs/2409.20325>`_, 2024.

        Liu et al., `Muon is Scalable for LLM Training
        <https://arxiv.org/abs/2502.16982>`_, 2025.
    """
    if not callable(matrices):
        for chosen in jax.tree.leaves(matrices):
            _check_flag(chosen)

    def labels(params: Tree) -> Tree:
        if matrices is None:
            chosen = jax.tree.map(_is_matrix, params)
        else:
            chosen = matrices(params) if callable(matrices) else matrices
        return jax.tree.map(_label, chosen, params)

    return optax.partition(
        {
            "matrix": optax.stateless(lambda updates, _: _orthogonalize(updates)),
            # Adam's scaling without a buffer for the average of gradients.
            "other": optax.chain(
                optax.stateless(lambda updates, _: jax.tree.map(_square_fits, updates)),
                optax.scale_by_rms(_DECAY, eps_in_sqrt=False, bias_correction=True),
            ),
        },
        labels,
    )


def _is_matrix(x: jax.Array) -> bool:
    return x.ndim > 1 and x.size > 0 and not jnp.iscomplexobj(x)


def _check_flag(chosen: Any) -> None:
    if not isinstance(chosen, bool):
        raise TypeError(
            "`matrices` must be a tree of bools or a function that returns one, got "
            f"{chosen!r} in it."
        )


def _label(chosen: bool, x: jax.Array) -> str:
    _check_flag(chosen)
    if chosen and not _is_matrix(x):
        raise ValueError(
            "`matrices` must choose real arrays with two axes or more, but it chooses "
            f"one of shape {x.shape} and dtype {x.dtype}: leave it out."
        )
    return "matrix" if chosen else "other"


def _square_fits(gradient: jax.Array) -> jax.Array:
    """Clips what has no square in its dtype, which would stay in the average for good.

    The conjugate direction sees the gradient itself, and skips one that is not finite.
    """
    largest = 0.9 * float(jnp.finfo(gradient.dtype).max) ** 0.5
    return gradient * (largest / jnp.maximum(jnp.abs(gradient), largest))


def _orthogonalize(gradients: Tree) -> Tree:
    """Orthogonalises every leaf; what is masked has none."""
    if any(axes and leaves for axes, leaves in shards.group(gradients).items()):
        raise ValueError(
            "scale_by_orthogonalization needs whole matrices, but inside "
            "`over_shards` some are split over devices: use it under `jit` with "
            "sharded arrays, or leave those out by `matrices`."
        )
    return jax.tree.map(_orthogonal, gradients)


def _orthogonal(gradient: jax.Array) -> jax.Array:
    sharding = jax.typeof(gradient).sharding
    split = any(sharding.spec)
    if split:
        # On an explicit mesh a product over an axis that is split has no type.
        gradient = jax.sharding.reshard(gradient, PartitionSpec())
    matrix = gradient.reshape(-1, gradient.shape[-1])
    wide = matrix.shape[0] <= matrix.shape[1]
    z = _newton_schulz(matrix if wide else matrix.T)
    z = (z if wide else z.T).reshape(gradient.shape)
    z = _RMS * max(matrix.shape) ** 0.5 * z
    return jax.sharding.reshard(z, sharding) if split else z


def _newton_schulz(matrix: jax.Array) -> jax.Array:
    """Takes the singular values of a matrix, not taller than wide, close to one."""
    # In two steps, since squares need not fit the dtype, nor their sum a narrow one.
    largest = jnp.max(jnp.abs(matrix))
    matrix = matrix / jnp.where(largest == 0, 1, largest)
    dtype = jnp.promote_types(matrix.dtype, jnp.float32)
    norm = jnp.linalg.norm(matrix.astype(dtype)).astype(matrix.dtype)
    matrix = matrix / jnp.where(norm == 0, 1, norm)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_STEPS):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix
