"""Muon's metric as a preconditioner: the nearest orthogonal matrix of a gradient."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optax_nlcg import shards, sharing
from optax_nlcg.matrix_axes import (
    Matrices,
    MatrixAxes,
    axes_of,
    check_choice,
    fold,
    is_matrix,
    is_pair,
    stack_split,
    unfold,
)
from optax_nlcg.tree import Tree, cast_like, lay_out_like, widen

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
    stack_sharding: NamedSharding | PartitionSpec | None = None,
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
    0.7 and 1.2. All that is no matrix is scaled as by Adam, without its average of
    gradients.

    The metric is that of each gradient. Rules for beta that apply it to a difference of
    gradients, ``hager_zhang``, get that of the difference instead.

    Learning rates are not those of SGD: 0.02 to 0.09 were the best in runs of some
    dozens of steps. The length of :math:`Z` does not depend on that of the gradient, so
    in longer runs they have to fall towards the end. What is no matrix has, as in
    Optax's own transformations, no protection from NaN: the direction that this is
    the preconditioner of skips such steps.

    Args:
        matrices: which arrays are matrices: a tree like the parameters, or a function
            of the parameters that returns one. Its leaves are bools, or pairs
            ``(rows, columns)`` of an axis or axes each, such as Optax's
            ``MuonDimensionNumbers``; the axes that are in neither count matrices, as
            those of layers that are stacked for a loop, or of attention heads that are
            to be orthogonal each by itself. ``True`` has columns in the last axis and
            rows in all others, as suits kernels of convolutions. By default all real
            arrays with two axes or more are ``True``; embeddings and output layers are
            often left out.
        stack_sharding: how to share the work out among devices. Matrices of equal size
            are stacked along a new first axis, and this is the layout of the stack:
            ``NamedSharding(mesh, PartitionSpec("devices"))`` under ``jit``,
            ``PartitionSpec("devices")`` inside ``shard_map`` or ``pmap``. Every device
            then orthogonalises whole matrices of its own; they cross the network once
            on the way there, if they are split, and once on the way back. ``None``:
            replicated matrices are orthogonalised on all devices alike, and under
            ``jit`` products of split ones cross the network in every step of the
            iteration. That also happens to matrices of a size of which there are fewer
            than half the devices. Leave it out for arrays that are split along an axis
            that counts matrices. It has no effect on arrays that are split by hand,
            which :func:`optax_nlcg.parallel.over_shards` must know of, or over axes of
            an explicit mesh: there matrices of equal size go to the devices that they
            are split over, and come back, in any case.

    Returns:
        The transformation. The state holds one copy of those parameters that are not
        matrices, in float32 or wider.

    Raises:
        TypeError: if ``matrices`` or ``stack_sharding`` is of another kind.
        ValueError: if ``stack_sharding`` splits anything but the first axis; in
            ``init`` or ``update``, if ``matrices`` does not fit the parameters or
            chooses an array with less than two axes or a complex one, or if
            ``stack_sharding`` names axes that are of another kind there.

    Examples:
        >>> import jax.numpy as jnp, optax_nlcg
        >>> gradient = jnp.diag(jnp.array([3.0, 0.5]))
        >>> tx = optax_nlcg.scale_by_orthogonalization()
        >>> z, _ = tx.update(gradient, tx.init(gradient))
        >>> print((z / (0.2 * 2**0.5)).round(1))
        [[0.7 0. ]
         [0.  1. ]]

        Around Muon's metric, with a schedule of one's own; the layers are stacked, and
        their attention has kernels of (width, heads, width of a head):

        >>> import optax
        >>> optimizer = optax_nlcg.nlcg(
        ...     optax.linear_schedule(0.05, 0.0, transition_steps=1000),
        ...     preconditioner=optax_nlcg.scale_by_orthogonalization(
        ...         {"query": (1, (2, 3)), "up": (1, 2), "scale": False}
        ...     ),
        ... )
        >>> state = optimizer.init({
        ...     "query": jnp.zeros((6, 32, 4, 8)),
        ...     "up": jnp.zeros((6, 32, 128)),
        ...     "scale": jnp.zeros((6, 32)),
        ... })

    References:
        Jordan et al., `Muon: An optimizer for hidden layers in neural networks
        <https://kellerjordan.github.io/posts/muon/>`_, 2024.

        Bernstein & Newhouse, `Old Optimizer, New Norm: An Anthology
        <https://arxiv.org/abs/2409.20325>`_, 2024.

        Liu et al., `Muon is Scalable for LLM Training
        <https://arxiv.org/abs/2502.16982>`_, 2025.
    """
    if not callable(matrices):
        for choice in jax.tree.leaves(matrices, is_leaf=is_pair):
            check_choice(choice)
    if stack_sharding is not None:
        sharing.check(stack_sharding)

    def choose(params: Tree) -> list[MatrixAxes | None]:
        """What each array is: matrices with these axes, or something else."""
        if matrices is None:
            chosen = jax.tree.map(is_matrix, params)
        else:
            chosen = matrices(params) if callable(matrices) else matrices
        leaves, structure = jax.tree.flatten(params)
        try:
            # What a wrapper has masked is not there to be chosen.
            chosen = jax.tree.map(
                lambda x, choice: x if _is_masked(x) else choice,
                params,
                chosen,
                is_leaf=_is_masked,
            )
            choices = structure.flatten_up_to(chosen)
        except ValueError as error:
            raise ValueError(
                f"`matrices` must be a tree like the parameters: {error}"
            ) from error
        return [axes_of(x, choice) for x, choice in zip(leaves, choices, strict=True)]

    def is_other(params: Tree) -> Tree:
        others = [axes is None for axes in choose(params)]
        return jax.tree.unflatten(jax.tree.structure(params), others)

    def orthogonalize(updates: Tree, params: Tree) -> Tree:
        del params
        leaves, structure = jax.tree.flatten(updates)
        chosen = {
            i: Matrices(x, axes, split)
            for i, (x, axes, split) in enumerate(
                zip(leaves, choose(updates), shards.leaf_splits(updates), strict=True)
            )
            if axes is not None
        }
        by_hand = [i for i, one in chosen.items() if any(one.split)]
        typed = [i for i in chosen if i not in by_hand and any(_spec(leaves[i]))]
        whole = [i for i in chosen if i not in by_hand + typed]
        for group, function in (
            (by_hand, _of_parts),
            (typed, _on_explicit_mesh),
            (whole, functools.partial(_of_whole, stack_sharding)),
        ):
            results = function([chosen[i] for i in group])
            for i, z in zip(group, results, strict=True):
                leaves[i] = z
        return structure.unflatten(leaves)

    return optax.chain(
        # Adam's scaling without a buffer for the average of gradients.
        optax.masked(
            _in_single_precision(
                optax.chain(
                    optax.stateless(lambda z, _: jax.tree.map(_square_fits, z)),
                    optax.scale_by_rms(_DECAY, eps_in_sqrt=False, bias_correction=True),
                )
            ),
            is_other,
        ),
        optax.stateless(orthogonalize),
    )


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _in_single_precision(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Computes and keeps in float32 what is narrower.

    A slow average of squares stands still in bfloat16, and is zero in float16, to be
    divided by, where gradients are a thousandth.
    """

    def init_fn(params: Tree) -> Tree:
        return lay_out_like(params, transformation.init(widen(params)))

    def update_fn(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        z, state = transformation.update(widen(updates), state, params)
        return cast_like(z, updates), state

    return optax.GradientTransformation(init_fn, update_fn)


def _square_fits(gradient: jax.Array) -> jax.Array:
    """Clips what has no square in its dtype, which would stay in the average for good.

    The conjugate direction sees the gradient itself, and skips one that is not finite.
    """
    largest = 0.9 * float(jnp.finfo(gradient.dtype).max) ** 0.5
    return gradient * (largest / jnp.maximum(jnp.abs(gradient), largest))


def _of_whole(
    stack_sharding: NamedSharding | PartitionSpec | None,
    group: Sequence[Matrices],
) -> list[jax.Array]:
    """Updates for arrays that are not split, or by the compiler alone."""
    stacks = list(map(unfold, group))
    if stack_sharding is None:
        stacks = map(_orthogonal, stacks)
    else:
        stacks = sharing.map_stacks(_orthogonal, stacks, stack_sharding)
    return list(map(fold, stacks, group))


def _of_parts(group: Sequence[Matrices]) -> list[jax.Array]:
    """Updates for arrays of which this device has a part."""
    stacks, splits = list(map(unfold, group)), list(map(stack_split, group))
    return list(map(fold, sharing.map_parts(_orthogonal, stacks, splits), group))


def _on_explicit_mesh(group: Sequence[Matrices]) -> list[jax.Array]:
    """Updates for arrays whose type tells how they are split.

    Products over an axis that is split have no type, so they are made by hand.
    """
    if not group:
        return []
    arrays = [one.array for one in group]
    specs = list(map(_spec, arrays))

    def of_parts(*parts: jax.Array) -> list[jax.Array]:
        return _of_parts(
            [
                Matrices(part, one.axes, shards.split_of(spec))
                for part, one, spec in zip(parts, group, specs, strict=True)
            ]
        )

    mesh = jax.typeof(arrays[0]).sharding.mesh
    return jax.shard_map(
        of_parts,
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=specs,
        axis_names=sharing.explicit_axes(mesh),
    )(*arrays)


def _spec(x: jax.Array) -> PartitionSpec:
    """How an array is split over axes of an explicit mesh."""
    return jax.typeof(x).sharding.spec


def _orthogonal(stack: jax.Array) -> jax.Array:
    """The update for matrices, [..., rows, columns], none taller than wide.

    An iteration takes the singular values close to one; its last step gives the result
    its length, which would be another pass over the stack.
    """
    # In two steps, since squares need not fit the dtype. A narrow one need not even fit
    # their sum, nor the reciprocal of a small entry.
    narrow, wide = stack.dtype, jnp.promote_types(stack.dtype, jnp.float32)
    stack = stack.astype(wide)
    largest = jnp.max(jnp.abs(stack), axis=(-2, -1), keepdims=True)
    stack = stack / jnp.where(largest == 0, 1, largest)
    norm = jnp.linalg.norm(stack, axis=(-2, -1), keepdims=True)
    stack = (stack / jnp.where(norm == 0, 1, norm)).astype(narrow)
    for i in range(_NUM_STEPS):
        length = _RMS * stack.shape[-1] ** 0.5 if i == _NUM_STEPS - 1 else 1
        a, b, c = (length * x for x in _COEFFICIENTS)
        gram = stack @ stack.mT
        # The identity goes into the smaller factor: a sum after the product would be
        # another pass over the stack.
        identity = jnp.broadcast_to(
            jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape
        )
        stack = (a * identity + b * gram + c * (gram @ gram)) @ stack
    return stack
