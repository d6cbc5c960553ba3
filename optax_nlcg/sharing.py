"""Sharing work on many matrices out among devices, whole matrices to each."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from optax_nlcg.shards import Axes

Function = Callable[[jax.Array], jax.Array]
MatrixSplit = tuple[Axes, Axes, Axes]


def check(sharding: Any) -> None:
    """Checks that ``stack_sharding`` says how to split the first axis, and no other.

    Raises:
        TypeError: if it is neither a ``NamedSharding`` nor a ``PartitionSpec``.
        ValueError: if it splits anything else.
    """
    if not isinstance(sharding, NamedSharding | PartitionSpec):
        raise TypeError(
            "`stack_sharding` must be a NamedSharding, a PartitionSpec or None, got "
            f"{sharding!r}."
        )
    spec = _spec(sharding)
    if len(spec) != 1 or spec[0] is None:
        raise ValueError(
            "`stack_sharding` must split the first axis and no other, as "
            f'PartitionSpec("devices") does, got {spec}.'
        )


def map_stacks(
    function: Function,
    stacks: Sequence[jax.Array],
    sharding: NamedSharding | PartitionSpec,
) -> list[jax.Array]:
    """Applies a function to matrices, those of equal size together, on one device each.

    Where there are fewer of a size than half the devices, all devices compute all of
    them, or what the compiler makes of that.

    Args:
        function: of a stack of matrices, [number, rows, columns], which maps each by
            itself, and zeros to finite numbers.
        stacks: arrays of matrices, [..., rows, columns].
        sharding: a ``NamedSharding`` under ``jit``; a ``PartitionSpec`` inside
            ``shard_map`` or ``pmap``, where all devices must have equal stacks. Both of
            the first axis of what is stacked.

    Returns:
        The results, laid out like the stacks.

    Raises:
        ValueError: if the sharding names axes that are of another kind here.
    """
    (axes,) = _spec(sharding)
    names = axes if isinstance(axes, tuple) else (axes,)
    if isinstance(sharding, NamedSharding):
        _check_automatic(names)
        number = math.prod(sharding.mesh.shape[name] for name in names)
        share_out = functools.partial(_under_jit, sharding=sharding, names=names)
    else:
        number = _size_by_hand(names)
        share_out = functools.partial(_by_hand, names=names)

    def apply(_: None, group: list[jax.Array]) -> list[jax.Array]:
        if 2 * sum(map(len, group)) < number:
            # Most devices would have nothing to do, and would send that to all others.
            return list(map(function, group))
        return _together(lambda stack: share_out(function, stack, number), group)

    return _map_groups(apply, stacks, [None] * len(stacks))


def map_parts(
    function: Function,
    stacks: Sequence[jax.Array],
    splits: Sequence[MatrixSplit],
) -> list[jax.Array]:
    """Applies a function to matrices that are split by hand, each whole on one device.

    Those of equal size go to the devices that they are split over by an all-to-all, and
    come back by another.

    Args:
        function: as for :func:`map_stacks`; besides, with rows or columns in another
            order its results must be the same in that order.
        stacks: arrays of matrices, [..., rows, columns], this device's part of them.
        splits: for each array the names of mesh axes that the matrices are dealt out
            over, those that their rows are split over, and those of their columns.

    Returns:
        The results, split like the stacks.
    """

    def exchange(split: MatrixSplit, stack: jax.Array) -> jax.Array:
        _, rows, columns = split
        ways = [(names, axis) for names, axis in ((rows, 1), (columns, 2)) if names]
        number = len(stack)
        stack = _pad(stack, jax.lax.axis_size(rows + columns))
        for names, axis in ways:
            stack = jax.lax.all_to_all(stack, names, 0, axis, tiled=True)
        stack = function(stack)
        for names, axis in reversed(ways):
            stack = jax.lax.all_to_all(stack, names, axis, 0, tiled=True)
        return stack[:number]

    def apply(split: MatrixSplit, group: list[jax.Array]) -> list[jax.Array]:
        return _together(functools.partial(exchange, split), group)

    return _map_groups(apply, stacks, splits)


def explicit_axes(mesh: Mesh | AbstractMesh) -> set[str]:
    """The names of a mesh's explicit axes."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind == AxisType.Explicit}


def _map_groups(
    function: Callable[[Any, list[jax.Array]], list[jax.Array]],
    stacks: Sequence[jax.Array],
    kinds: Sequence[Any],
) -> list[jax.Array]:
    """Applies a function of a kind to its stacks with matrices of one size."""
    flat = [stack.reshape(-1, *stack.shape[-2:]) for stack in stacks]
    groups: dict[Any, list[int]] = {}
    for i, (stack, kind) in enumerate(zip(flat, kinds, strict=True)):
        groups.setdefault((kind, stack.shape[1:], stack.dtype), []).append(i)
    for (kind, *_), group in groups.items():
        results = function(kind, [flat[i] for i in group])
        for i, result in zip(group, results, strict=True):
            flat[i] = result.reshape(stacks[i].shape)
    return flat


def _together(function: Function, stacks: list[jax.Array]) -> list[jax.Array]:
    """Applies a function to one stack of all."""
    stack = function(jnp.concatenate(stacks))
    return jnp.split(stack, np.cumsum(list(map(len, stacks)))[:-1])


def _under_jit(
    function: Function,
    stack: jax.Array,
    number: int,
    sharding: NamedSharding,
    names: tuple[str, ...],
) -> jax.Array:
    """Has the compiler split a stack.

    Matrices may come replicated or split by their rows or columns, and are to leave in
    the same way. Stacked while that is so, a replicated stack is cut without
    communication and gathered at the end, and a split one is passed on by an all-to-all
    each way. Stacked as it is cut, every matrix would be sent by itself.
    """
    explicit = explicit_axes(sharding.mesh).issuperset(names)
    place = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
    inner = None if explicit else PartitionSpec.UNCONSTRAINED
    together = NamedSharding(sharding.mesh, PartitionSpec(None, inner, inner))
    padded = _pad(place(stack, together), number)
    return place(function(place(padded, sharding)), together)[: len(stack)]


def _by_hand(
    function: Function, stack: jax.Array, number: int, names: tuple[str, ...]
) -> jax.Array:
    """Takes this device's share of a stack, and gathers the results of all."""
    padded = _pad(stack, number)
    share = len(padded) // number
    start = share * jax.lax.axis_index(names)
    part = function(jax.lax.dynamic_slice_in_dim(padded, start, share))
    if jax.__version_info__ >= (0, 10):
        whole = jax.lax.all_gather(part, names, tiled=True, to="invarying")
    else:
        # To `shard_map` what is gathered differs between devices. A sum does not, but
        # it sends twice as much.
        zeros = jnp.zeros_like(padded)
        whole = jax.lax.dynamic_update_slice_in_dim(zeros, part, start, 0)
        whole = jax.lax.psum(whole, names)
    return whole[: len(stack)]


def _pad(stack: jax.Array, number: int) -> jax.Array:
    """Fills a stack up to a multiple of a number, with zeros."""
    return jnp.pad(stack, ((0, -len(stack) % number), (0, 0), (0, 0)))


def _spec(sharding: NamedSharding | PartitionSpec) -> PartitionSpec:
    return sharding.spec if isinstance(sharding, NamedSharding) else sharding


def _check_automatic(names: tuple[str, ...]) -> None:
    by_hand = set(names) & set(jax.sharding.get_abstract_mesh().manual_axes)
    if by_hand:
        raise ValueError(
            f"`stack_sharding` splits over {', '.join(map(repr, by_hand))}, which "
            "`shard_map` or `pmap` has split here already: pass a PartitionSpec alone."
        )


def _size_by_hand(names: tuple[str, ...]) -> int:
    try:
        return jax.lax.axis_size(names)
    except NameError as error:
        raise ValueError(
            "`stack_sharding` is a PartitionSpec, for `shard_map` and `pmap`, but no "
            f"{', '.join(map(repr, names))} is mapped here: pass NamedSharding(mesh, "
            "spec)."
        ) from error
