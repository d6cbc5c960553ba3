"""Over which mesh axes each leaf is split, where code sees one device's part of it."""

import contextlib
import contextvars
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Tree = Any
AxisName = Hashable | Sequence[Hashable]
Axes = tuple[Hashable, ...]
Split = tuple[Axes, ...]

_splits_by_path: contextvars.ContextVar[Mapping[Any, Split] | None] = (
    contextvars.ContextVar("splits_by_path", default=None)
)


def axis_names(axis_name: AxisName) -> Axes:
    """The names that an argument gives which is one axis or a sequence of them."""
    return tuple(axis_name) if isinstance(axis_name, list | tuple) else (axis_name,)


def leaf_axes(tree: Tree, specs: Tree) -> list[Axes]:
    """The axes that leaves are split over, as tuples of names.

    Args:
        tree: tree of arrays.
        specs: its partition specs, as :func:`jax.shard_map` takes them: a tree prefix
            of specs, ``None`` for an array that is not split.

    Returns:
        List of tuples in the order of the leaves.

    Raises:
        ValueError: if the specs are not a tree prefix.
    """
    return list(map(_all_axes, _splits_by_specs(tree, specs)))


@contextlib.contextmanager
def split(tree: Tree, specs: Tree) -> Iterator[None]:
    """Makes reductions of trees with these paths span the devices, while it lasts."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    splits = _splits_by_specs(tree, specs)
    token = _splits_by_path.set(dict(zip(paths, splits, strict=True)))
    try:
        yield
    finally:
        _splits_by_path.reset(token)


def are_split() -> bool:
    """Whether code runs inside :func:`split`."""
    return _splits_by_path.get() is not None


def split_of(spec: PartitionSpec | None) -> Split:
    """For each dimension that a partition spec has, a tuple of names of mesh axes."""
    return tuple(
        (entry,) if isinstance(entry, str) else tuple(entry or ())
        for entry in spec or ()
    )


def leaf_splits(tree: Tree) -> list[Split]:
    """How leaves are split.

    Args:
        tree: tree with the paths of that given to :func:`split`, or some of them.

    Returns:
        For each leaf what :func:`split_of` makes of its spec. Dimensions at the end may
        be missing: they are not split.

    Raises:
        ValueError: if there are other paths.
    """
    known = _splits_by_path.get()
    if known is None:
        return [()] * len(jax.tree.leaves(tree))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for path in paths:
        if path not in known:
            raise ValueError(
                "over_shards: a stage reduces a tree that is not like the parameters; "
                f"it has a leaf at {jax.tree_util.keystr(path)!r}. Use that stage "
                "under `jit` with sharded arrays instead."
            )
    return [known[path] for path in paths]


def group(tree: Tree) -> dict[Axes, list[Any]]:
    """Groups leaves by the axes that they are split over.

    Args:
        tree: tree with the paths of that given to :func:`split`, or some of them.

    Returns:
        Lists of leaves by tuples of axes; one, for no axes, is always there.

    Raises:
        ValueError: if there are other paths.
    """
    groups: dict[Axes, list[Any]] = {(): []}
    for leaf, split in zip(jax.tree.leaves(tree), leaf_splits(tree), strict=True):
        groups.setdefault(_all_axes(split), []).append(leaf)
    return groups


def as_varying(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Marks an array as one that differs between the devices of an axis.

    Args:
        x: array, marked already or not.
        axis_name: mapped axis, or axes.

    Returns:
        The same array.
    """
    # The sum of the two varies over all that one of them varies over.
    return x + jax.lax.pcast(jnp.zeros((), x.dtype), axis_name, to="varying")


def _splits_by_specs(tree: Tree, specs: Tree) -> list[Split]:
    splits = []

    def add(spec: PartitionSpec | None, subtree: Tree) -> None:
        splits.extend([split_of(spec)] * len(jax.tree.leaves(subtree)))

    jax.tree.map(add, specs, tree, is_leaf=_is_spec)
    return splits


def _all_axes(split: Split) -> Axes:
    return tuple(itertools.chain.from_iterable(split))


def _is_spec(x: Any) -> bool:
    return x is None or isinstance(x, PartitionSpec)
