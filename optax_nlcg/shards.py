"""Over which mesh axes each leaf is split, where code sees one device's part of it."""

import contextlib
import contextvars
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Tree = Any
AxisName = Hashable | Sequence[Hashable]
Axes = tuple[Hashable, ...]

_axes_by_path: contextvars.ContextVar[Mapping[Any, Axes] | None] = (
    contextvars.ContextVar("axes_by_path", default=None)
)


def leaf_axes(tree: Tree, specs: Tree) -> Tree:
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
    axes = []

    def add(spec: PartitionSpec | None, subtree: Tree) -> None:
        names = []
        for entry in spec or ():
            names.extend([entry] if isinstance(entry, str) else entry or ())
        axes.extend([tuple(names)] * len(jax.tree.leaves(subtree)))

    jax.tree.map(add, specs, tree, is_leaf=_is_spec)
    return axes


@contextlib.contextmanager
def split(tree: Tree, specs: Tree) -> Iterator[None]:
    """Makes reductions of trees with these paths span the devices, while it lasts."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    token = _axes_by_path.set(dict(zip(paths, leaf_axes(tree, specs), strict=True)))
    try:
        yield
    finally:
        _axes_by_path.reset(token)


def are_split() -> bool:
    """Whether code runs inside :func:`split`."""
    return _axes_by_path.get() is not None


def group(tree: Tree) -> dict[Axes, list[Any]]:
    """Groups leaves by the axes that they are split over.

    Args:
        tree: tree with the paths of that given to :func:`split`, or some of them.

    Returns:
        Lists of leaves by tuples of axes; one, for no axes, is always there.

    Raises:
        ValueError: if there are other paths.
    """
    known = _axes_by_path.get()
    if known is None:
        return {(): jax.tree.leaves(tree)}
    groups: dict[Axes, list[Any]] = {(): []}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if path not in known:
            raise ValueError(
                "over_shards: a stage reduces a tree that is not like the parameters; "
                f"it has a leaf at {jax.tree_util.keystr(path)!r}. Use that stage "
                "under `jit` with sharded arrays instead."
            )
        groups.setdefault(known[path], []).append(leaf)
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


def _is_spec(x: Any) -> bool:
    return x is None or isinstance(x, PartitionSpec)
