"""What conjugate gradients ask of trees beyond Optax: wide inner products."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from optax_nlcg import shards

Tree = Any
"""A tree of arrays: parameters, gradients, directions."""


def scalar_dtype(*trees: Tree) -> jnp.dtype:
    """The dtype in which scalars over these trees are kept.

    Args:
        *trees: trees of real or complex arrays.

    Returns:
        The widest real dtype among the leaves, at least float32.
    """
    # Each dtype by itself: of weakly typed float64 among others nothing would remain.
    dtypes = map(jnp.result_type, jax.tree.leaves(trees))
    widest = jnp.result_type(jnp.float32, *dtypes)
    return jnp.zeros((), widest).real.dtype


def inner_products(
    pairs: Sequence[tuple[Tree, Tree]], dtype: DTypeLike | None = None
) -> jax.Array:
    r"""Inner products of several pairs of trees, as one vector.

    For each pair it is :math:`\sum_i \mathrm{Re}(\overline{x_i}\, y_i)` over all
    entries of all leaves: the inner product of :math:`\mathbb{R}^n`, or of
    :math:`\mathbb{R}^{2n}` if the leaves are complex. Entries are cast to the
    accumulator before they are multiplied: in bfloat16 the sum itself would stop
    growing at 256 ones, in float16 a single square overflows at 256. Nothing is
    flattened or concatenated, so sharded leaves stay where they are and only scalars
    travel.

    Args:
        pairs: pairs ``(x, y)`` of trees with the same structure and shapes.
        dtype: real dtype of the accumulator; by default :func:`scalar_dtype` of
            the trees.

    Returns:
        Array of shape ``[len(pairs)]``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from optax_nlcg.tree import inner_products
        >>> x = {"w": jnp.full(300, 1., jnp.bfloat16), "b": jnp.array(2.)}
        >>> print(inner_products([(x, x)]))
        [304.]
    """
    if dtype is None:
        dtype = scalar_dtype(pairs)

    def dot(x, y):
        if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
            wide = jnp.result_type(dtype, jnp.complex64)
            x, y = jnp.asarray(x).astype(wide), jnp.asarray(y).astype(wide)
            return jnp.sum(jnp.real(jnp.conj(x) * y))
        return jnp.sum(jnp.asarray(x).astype(dtype) * jnp.asarray(y).astype(dtype))

    totals = add_leaves([jax.tree.map(dot, x, y) for x, y in pairs], dtype)
    # Without the barrier XLA fuses the sum over all leaves into each leaf's update,
    # and code and compile time grow with the square of the number of leaves.
    return jax.lax.optimization_barrier(totals)


def add_leaves(trees: Sequence[Tree], dtype: DTypeLike) -> jax.Array:
    """Adds the leaves of trees of scalars, over devices too where leaves are split.

    Args:
        trees: trees with one scalar for each leaf of the parameters.
        dtype: dtype of the result.

    Returns:
        Array of shape ``[len(trees)]``, a sum for each tree.
    """
    return _over_leaves(trees, jnp.zeros((), dtype), jnp.add, jax.lax.psum)


def count_not_finite(tree: Tree, dtype: DTypeLike) -> Tree:
    """Numbers of entries that are NaN or infinite, by leaf, for :func:`add_leaves`."""
    return jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x), dtype=dtype), tree)


def greatest_leaves(trees: Sequence[Tree], dtype: DTypeLike) -> jax.Array:
    """Greatest leaves of trees of scalars, over devices too where leaves are split.

    Args:
        trees: trees with one scalar for each leaf of the parameters.
        dtype: dtype of the result.

    Returns:
        Array of shape ``[len(trees)]``; minus infinity for a tree without leaves.
    """
    lowest = jnp.full((), -jnp.inf, dtype)
    return _over_leaves(trees, lowest, jnp.maximum, jax.lax.pmax)


def _over_leaves(trees, start, combine, over_devices):
    groups = [shards.group(tree) for tree in trees]
    totals = []
    for axes in dict.fromkeys(axes for group in groups for axes in group):
        parts = [functools.reduce(combine, g.get(axes, []), start) for g in groups]
        total = jnp.stack(parts)
        totals.append(over_devices(total, axes) if axes else total)
    return functools.reduce(combine, totals)


def size(tree: Tree) -> int:
    """Number of real numbers that a tree consists of, on all devices."""
    total = 0
    for axes, leaves in shards.group(tree).items():
        here = sum(jnp.size(x) * (2 if jnp.iscomplexobj(x) else 1) for x in leaves)
        total += here * (jax.lax.axis_size(axes) if axes else 1)
    return total


def largest(tree: Tree, dtype: DTypeLike) -> jax.Array:
    """Largest absolute value of the real numbers that a tree consists of.

    Args:
        tree: tree of arrays; a complex entry counts as two real ones.
        dtype: dtype of the result.

    Returns:
        Scalar; NaN if an entry is NaN.
    """

    def leaf_largest(x):
        if jnp.iscomplexobj(x):
            x = jnp.stack([jnp.real(x), jnp.imag(x)])
        return jnp.max(jnp.abs(x), initial=0).astype(dtype)

    return jnp.maximum(0, greatest_leaves([jax.tree.map(leaf_largest, tree)], dtype)[0])


def fits(tree: Tree, like: Tree) -> bool | jax.Array:
    """Whether a tree can be cast to the dtypes of another without overflow.

    Only dtypes of a range like float16's are looked at: for others it costs nothing.

    Args:
        tree: tree of real or complex arrays.
        like: tree of the same structure.

    Returns:
        True, or a bool scalar where there are leaves to look at.
    """

    def relative(x, y):
        dtype = jnp.result_type(y)
        if not jnp.issubdtype(dtype, jnp.inexact):  # as for Optax's: no update
            return None
        limit = float(jnp.finfo(dtype).max)
        return jnp.abs(x).astype(jnp.float32) / limit if limit < 1e30 else None

    narrow = jax.tree.map(relative, tree, like)
    if not jax.tree.leaves(narrow):
        return True
    return largest(narrow, jnp.float32) <= 1


def full_like(tree: Tree, value: ArrayLike, dtype: DTypeLike | None = None) -> Tree:
    """Arrays for a state: like those of a tree, with one value everywhere.

    They are laid out over devices like the tree's also where ``init`` is compiled.
    :func:`jax.numpy.full_like` forgets the layout there: the compiler sees a constant,
    and on an explicit mesh, without a mesh in context, its type has no layout either.

    Args:
        tree: tree of arrays.
        value: the value.
        dtype: dtype of the arrays; by default that of the tree's.

    Returns:
        Tree with the same structure and shapes.
    """

    def leaf_like(x):
        own = jnp.result_type(x) if dtype is None else dtype
        return _nowhere(x).astype(own) + jnp.asarray(value, own)

    return jax.tree.map(leaf_like, tree)


def lay_out_like(tree: Tree, state: Any) -> Any:
    """The state that Optax makes for a tree, laid out like the tree.

    Optax's zeros forget the layout where ``init`` is compiled, see :func:`full_like`:
    one device, or each of them, then holds all of what is meant to be split.

    Args:
        tree: tree of arrays.
        state: a new state; what it holds in trees of the same structure and shapes is
            laid out.

    Returns:
        The state with the same values.
    """
    structure = jax.tree.structure(tree)

    def is_like(node):
        return jax.tree.structure(node) == structure

    def leaf_like(x, leaf):
        if (
            not isinstance(leaf, Tracer)  # elsewhere zeros have a layout
            or leaf.shape != jnp.shape(x)
            or not jnp.issubdtype(leaf.dtype, jnp.inexact)
        ):
            return leaf
        return leaf + _nowhere(x).astype(leaf.dtype)

    def node_like(node):
        return jax.tree.map(leaf_like, tree, node) if is_like(node) else node

    return jax.tree.map(node_like, state, is_leaf=is_like)


def _nowhere(x: Any) -> jax.Array:
    """False like an array: added to something, it ties layouts and changes nothing.

    Its shape and type are those of what is computed of the array: one that a traced
    function closes over does not tell how it is split over an explicit mesh.
    """
    other = jnp.asarray(x != x)
    return jnp.logical_and(other, jnp.logical_not(other))


def map_components(fn: Callable[..., jax.Array], *trees: Tree) -> Tree:
    """Maps a real elementwise function over trees whose leaves may be complex.

    A complex leaf stands for two real ones: ``fn`` is applied to the real and to the
    imaginary parts. (A diagonal preconditioner has one entry for each of them.)

    Args:
        fn: elementwise function of as many real arrays as there are trees.
        *trees: trees of the same structure.

    Returns:
        Tree of the same structure.
    """

    def leaf_fn(*leaves):
        if any(jnp.iscomplexobj(leaf) for leaf in leaves):
            return jax.lax.complex(
                fn(*(jnp.real(leaf) for leaf in leaves)),
                fn(*(jnp.imag(leaf) for leaf in leaves)),
            )
        return fn(*leaves)

    return jax.tree.map(leaf_fn, *trees)


def cast_like(tree: Tree, like: Tree) -> Tree:
    """Casts each leaf to the dtype of the corresponding leaf of another tree."""
    # NumPy's float64 is float32 here, unless JAX is told otherwise.
    return jax.tree.map(
        lambda x, y: jnp.asarray(x).astype(jnp.result_type(y)), tree, like
    )


def change(new: Tree, old: Tree) -> Tree:
    """The difference ``new - old``, after rounding ``new`` as ``old`` was rounded.

    Otherwise, where the new ones are wider, it would be rounding noise.
    """
    return jax.tree.map(jnp.subtract, cast_like(new, old), old)


def widen(tree: Tree) -> Tree:
    """Casts to float32 what is narrower."""
    return jax.tree.map(
        lambda x: jnp.asarray(x).astype(jnp.result_type(x, jnp.float32)), tree
    )


def add_scaled(x: Tree, factor: jax.Array, y: Tree) -> Tree:
    """The sum ``x + factor * y`` in the dtypes of ``x``; Optax's widens them."""
    return jax.tree.map(lambda a, b: (a + factor * b).astype(a.dtype), x, y)


def select(condition: jax.Array, on_true: Tree, on_false: Tree) -> Tree:
    """Selects one of two trees by a scalar condition, without a branch."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), on_true, on_false)


def skip_unless(
    condition: jax.Array, updates: Tree, new_state: Any, state: Any
) -> tuple[Tree, Any]:
    """The outcome of a step, or that of skipping it.

    Args:
        condition: whether to take the step, bool scalar.
        updates: its updates.
        new_state: the state after it.
        state: the state before it, with a counter ``num_skipped``.

    Returns:
        ``updates`` and ``new_state``, or zeros and ``state`` with one more skipped.
    """
    skipped = state._replace(num_skipped=optax.safe_increment(state.num_skipped))
    updates = jax.tree.map(lambda u: jnp.where(condition, u, 0), updates)
    return updates, select(condition, new_state, skipped)


def conceal(tree: Tree) -> Tree:
    """The same arrays, which the compiler must take for others.

    What is computed from them a second time is not shared with what was computed from
    the originals the first time, and so need not be kept in memory in between.
    """
    # One by one: what is tied together counts as split over the same devices.
    return jax.tree.map(jax.lax.optimization_barrier, tree)


def check_match(
    updates: Tree, expected: Tree, *, stage: str, name: str = "updates"
) -> None:
    """Checks that a tree has the structure and shapes that a state was made for.

    Args:
        updates: the tree given to ``update``.
        expected: a tree in the state, made by ``init`` from the parameters.
        stage: name of the transformation, for the message.
        name: name of the argument of ``update``, for the message.

    Raises:
        ValueError: if they differ; says where.
    """
    got, want = jax.tree.structure(updates), jax.tree.structure(expected)
    if got != want:
        raise ValueError(
            f"{stage}: `{name}` has the tree structure\n  {got}\nbut `init` was "
            f"called with parameters of the structure\n  {want}\nCall `init` with the "
            "parameters that the gradient is taken of."
        )
    with_path = jax.tree_util.tree_leaves_with_path(updates)
    for (path, x), y in zip(with_path, jax.tree.leaves(expected), strict=True):
        if jnp.shape(x) != jnp.shape(y):
            at = jax.tree_util.keystr(path)
            raise ValueError(
                f"{stage}: `{name}{at}` has shape {jnp.shape(x)} but `init` was "
                f"called with a parameter of shape {jnp.shape(y)} there."
            )
