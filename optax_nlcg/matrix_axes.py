"""Which axes of an array are the rows and columns of matrices."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_nlcg import shards
from optax_nlcg.sharing import MatrixSplit


class MatrixAxes(NamedTuple):
    """Which axes of an array count matrices, and which are their rows and columns."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


class Matrices(NamedTuple):
    """The matrices in an array, or in the part of one that a device has.

    Attributes:
        array: the array, or the part.
        axes: which of its axes are what.
        split: the axes of a mesh that the array is split over by hand.
    """

    array: jax.Array
    axes: MatrixAxes
    split: shards.Split


def is_matrix(x: jax.Array) -> bool:
    """Whether an array can be chosen."""
    return jnp.ndim(x) > 1 and x.size > 0 and not jnp.iscomplexobj(x)


def is_pair(choice: Any) -> bool:
    """Whether it says which axes are a matrix's rows and which its columns."""

    def is_axes(axes: Any) -> bool:
        several = axes if isinstance(axes, Sequence) else (axes,)
        return all(
            isinstance(i, int | np.integer) and not isinstance(i, bool) for i in several
        )

    return isinstance(choice, tuple) and len(choice) == 2 and all(map(is_axes, choice))


def check_choice(choice: Any) -> None:
    """Checks a leaf of ``matrices``.

    Raises:
        TypeError: if it is neither a bool nor a pair of axes.
    """
    if not (isinstance(choice, bool | np.bool_) or is_pair(choice)):
        raise TypeError(
            "`matrices` must be a tree of bools or pairs of axes, (rows, columns), or "
            f"a function that returns one, got {choice!r} in it."
        )


def axes_of(x: jax.Array, choice: Any) -> MatrixAxes | None:
    """What a leaf of ``matrices`` says about an array.

    Raises:
        TypeError: if it says nothing.
        ValueError: if the array cannot be chosen, or has no such axes.
    """
    if choice is None:  # as Optax's Muon has it for what is no matrix
        return None
    check_choice(choice)
    if not isinstance(choice, tuple) and not choice:
        return None
    if not is_matrix(x):
        raise ValueError(
            "`matrices` must choose real arrays with two axes or more, but it chooses "
            f"one of shape {x.shape} and dtype {x.dtype}: leave it out."
        )
    if not isinstance(choice, tuple):
        return MatrixAxes((), tuple(range(x.ndim - 1)), (x.ndim - 1,))
    rows, columns = (
        tuple(axes) if isinstance(axes, Sequence) else (axes,) for axes in choice
    )
    known = [axis for axis in rows + columns if -x.ndim <= axis < x.ndim]
    places = [axis % x.ndim for axis in known]
    if not (rows and columns and len(set(places)) == len(rows) + len(columns)):
        raise ValueError(
            f"`matrices` has {choice!r} for an array of shape {x.shape}: it must name "
            "axes that there are, at least one for rows and one for columns, and each "
            "once."
        )
    batch = tuple(axis for axis in range(x.ndim) if axis not in places)
    return MatrixAxes(batch, tuple(places[: len(rows)]), tuple(places[len(rows) :]))


def unfold(one: Matrices) -> jax.Array:
    """Makes of an array its matrices, [..., rows, columns], none taller than wide."""
    x, axes = one.array, one.axes
    batch, rows, columns = (tuple(x.shape[i] for i in group) for group in axes)
    x = x.transpose(axes.batch + axes.rows + axes.columns)
    stack = x.reshape(*batch, math.prod(rows), math.prod(columns))
    return stack.mT if _is_tall(one) else stack


def fold(stack: jax.Array, like: Matrices) -> jax.Array:
    """Makes an array of its matrices."""
    if _is_tall(like):
        stack = stack.mT
    x, axes = like.array, like.axes
    order = axes.batch + axes.rows + axes.columns
    return stack.reshape([x.shape[i] for i in order]).transpose(np.argsort(order))


def stack_split(one: Matrices) -> MatrixSplit:
    """The axes of a mesh that batch, rows and columns of :func:`unfold`'s are over."""
    batch, rows, columns = _names(one)
    return (batch, columns, rows) if _is_tall(one) else (batch, rows, columns)


def _is_tall(one: Matrices) -> bool:
    """Whether matrices have more rows than columns, on all devices together."""
    _, num_rows, num_columns = (
        math.prod(one.array.shape[i] for i in group) * jax.lax.axis_size(names)
        for group, names in zip(one.axes, _names(one), strict=True)
    )
    return num_rows > num_columns


def _names(one: Matrices) -> list[shards.Axes]:
    """The axes of a mesh that batch, rows and columns are split over by hand."""
    by_axis = dict(enumerate(one.split))
    return [
        tuple(name for i in group for name in by_axis.get(i, ())) for group in one.axes
    ]
