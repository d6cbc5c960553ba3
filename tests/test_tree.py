"""Inner products and the other helpers of tree.py."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_nlcg
from optax_nlcg import tree


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_accumulates_in_float32(dtype):
    x = {"a": jnp.full(19200, 1.0, dtype), "b": jnp.full(3, 300.0, dtype)}
    dot = tree.inner_products([(x, x)])[0]
    assert dot.dtype == jnp.float32
    assert float(dot) == 19200 + 3 * 300.0**2


def test_several_pairs_of_nested_trees():
    rng = np.random.default_rng(0)
    x, y = (
        {"a": rng.normal(size=(3, 4)), "b": [rng.normal(size=()), rng.normal(size=2)]}
        for _ in range(2)
    )
    flat = [np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)]) for t in (x, y)]
    with jax.enable_x64(True):
        x, y = jax.tree.map(jnp.asarray, (x, y))
        dots = tree.inner_products([(x, x), (x, y), (y, y)])
        assert dots.dtype == jnp.float64
    want = [flat[0] @ flat[0], flat[0] @ flat[1], flat[1] @ flat[1]]
    np.testing.assert_allclose(dots, want, rtol=1e-14)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float64", 1e-14)])
def test_complex_is_two_reals(dtype, rtol):
    rng = np.random.default_rng(1)
    re, im = (rng.normal(size=(2, 7)).astype(dtype) for _ in range(2))
    with jax.enable_x64(dtype == "float64"):
        z = jnp.asarray(re + 1j * im)
        dots = tree.inner_products([(z[0], z[1]), (z[0], re[1]), (re[0], z[1])])
    assert dots.dtype == dtype
    real = re[0] @ re[1]
    np.testing.assert_allclose(dots, [real + im[0] @ im[1], real, real], rtol=rtol)


def test_empty_tree():
    np.testing.assert_array_equal(tree.inner_products([({}, {})]), [0.0])
    assert tree.scalar_dtype({}) == jnp.float32


@pytest.mark.parametrize(
    ("dtypes", "want"),
    [
        ((jnp.bfloat16, jnp.float16), jnp.float32),
        ((jnp.float32,), jnp.float32),
        ((jnp.complex64, jnp.bfloat16), jnp.float32),
        ((jnp.float32, jnp.float64), jnp.float64),
        ((jnp.complex128,), jnp.float64),
    ],
)
def test_scalar_dtype(dtypes, want):
    with jax.enable_x64(True):
        assert tree.scalar_dtype([jnp.zeros(2, d) for d in dtypes]) == want
        weak = jnp.asarray(0.5)
        assert weak.weak_type
        assert tree.scalar_dtype([weak, jnp.zeros(2, dtypes[0])]) == jnp.float64


def test_map_components():
    z = jnp.asarray([1 - 2j, -3 + 4j], jnp.complex64)
    absolute = tree.map_components(jnp.abs, {"z": z, "x": jnp.asarray([-1.0])})
    np.testing.assert_array_equal(absolute["z"], [1 + 2j, 3 + 4j])
    np.testing.assert_array_equal(absolute["x"], [1.0])


def test_mismatch_says_where():
    expected = {"a": jnp.zeros(2), "b": jnp.zeros((3, 4))}
    with pytest.raises(ValueError, match=r"stage_x: `updates\['b'\]` has shape \(3,\)"):
        tree.check_match(
            {"a": jnp.zeros(2), "b": jnp.zeros(3)}, expected, stage="stage_x"
        )
    with pytest.raises(ValueError, match="tree structure"):
        tree.check_match({"a": jnp.zeros(2)}, expected, stage="stage_x")


@pytest.mark.parametrize("finite", [True, False])
def test_skipped_steps_are_counted_and_change_nothing_else(finite):
    state = optax_nlcg.scale_by_diagonal_bfgs().init({"a": jnp.ones(2)})
    new_state = jax.tree.map(lambda x: x + 1, state)._replace(num_skipped=0)
    updates = {"a": jnp.array([jnp.nan, 1.0]) if not finite else jnp.ones(2)}
    updates, after = tree.skip_unless(jnp.asarray(finite), updates, new_state, state)
    expected = new_state if finite else state._replace(num_skipped=1)
    chex.assert_trees_all_equal(after, expected)
    np.testing.assert_array_equal(updates["a"], 1.0 if finite else 0.0)


def test_size_counts_real_numbers():
    assert tree.size({"a": jnp.zeros((2, 3)), "b": jnp.zeros(4, jnp.complex64)}) == 14


@pytest.mark.parametrize(
    ("leaves", "want"),
    [
        ([], 0),
        ([np.zeros(0), [-3.0, 2.0]], 3),
        ([[1.0], [3 - 4j]], 4),
        ([[1.0], [-5 + 4j]], 5),
        ([[1.0, np.nan], [2.0]], np.nan),
        ([[1.0], [np.nan * 1j]], np.nan),
        ([[1.0], [-np.inf]], np.inf),
    ],
)
def test_largest(leaves, want):
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    np.testing.assert_array_equal(tree.largest(leaves, jnp.float32), np.float32(want))


def test_fits():
    wide, narrow = jnp.asarray([-65504.0, 1.0]), jnp.zeros(2, jnp.float16)
    assert tree.fits([wide, 1e6 * wide], [narrow, wide])
    assert not tree.fits([wide, 1.001 * wide], [narrow, narrow])
    assert not tree.fits([wide * jnp.nan], [narrow])
    assert tree.fits([1e30 * wide], [wide]) is True


def test_full_like():
    like = {"a": jnp.zeros(3, jnp.bfloat16), "b": np.zeros((), np.complex64)}
    full = jax.jit(lambda t: tree.full_like(t, 2))(like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), full) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    assert all(bool((x == 2).all()) for x in jax.tree.leaves(full))
    assert tree.full_like(like["a"], 0, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("context", [True, False], ids=["set_mesh", "no set_mesh"])
@pytest.mark.parametrize("value", [0, 2, jnp.inf])
def test_full_like_on_an_explicit_mesh(context, value):
    """Also of what is not finite, and of stacks."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    x = jax.device_put(
        jnp.array([1.0, jnp.nan, jnp.inf, 0.0]), NamedSharding(mesh, P("d"))
    )

    def full(x):
        both = tree.full_like((x, jnp.broadcast_to(x, (3, *x.shape))), value)
        # The type, which what is computed of them must agree with.
        one, stack = (jax.typeof(y).sharding.spec for y in both)
        assert (one, stack) == (P("d"), P(None, "d"))
        return both

    with jax.set_mesh(mesh) if context else contextlib.nullcontext():
        one, stack = jax.jit(full)(x)
    assert bool(jnp.all(one == value))
    assert bool(jnp.all(stack == value))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_full_like_what_a_traced_function_closes_over(kind):
    """As in ``jax.eval_shape(lambda: optimizer.init(params))``."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, P("x")))
        full = jax.jit(lambda: tree.full_like(x, 2))()
    np.testing.assert_array_equal(full, 2 * np.ones((4, 3)))
    if kind == AxisType.Explicit:
        assert jax.typeof(full) == jax.typeof(x)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_lay_out_like(kind):
    """Zeros that Optax makes in a compiled ``init``; nothing else changes."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    split = NamedSharding(mesh, P("x"))
    params = {"w": jax.device_put(jnp.array([jnp.nan, 1.0]), split), "s": jnp.ones(())}

    @jax.jit
    def init(params):
        state = {
            "mean": {"w": jnp.full(2, jnp.inf), "s": -jnp.ones((), jnp.bfloat16)},
            "of another shape": {"w": jnp.ones(3), "s": jnp.ones(())},
            "counts": {"w": jnp.ones(2, jnp.int32), "s": jax.random.key(0)},
            "numbers": {"w": 1.0, "s": 0.5},
            "rate": jnp.ones(()),
            "none": None,
        }
        return state, tree.lay_out_like(params, state)

    state, laid_out = init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(laid_out, state)
    keys = laid_out["counts"].pop("s"), state["counts"].pop("s")
    chex.assert_trees_all_equal(laid_out, state)
    chex.assert_trees_all_equal(*map(jax.random.key_data, keys))
    assert laid_out["mean"]["w"].sharding.is_equivalent_to(split, 1)


def test_double_precision_of_numpy_is_single_precision_here():
    cast = tree.cast_like({"w": jnp.ones(2)}, {"w": np.ones(2)})
    assert cast["w"].dtype == jnp.float32


def test_widen_leaves_what_is_wide_enough():
    with jax.enable_x64(True):
        dtypes = "bfloat16", "float16", "float32", "float64", "complex64"
        wide = tree.widen([jnp.ones(2, dtype) for dtype in dtypes] + [2.0])
        got = [leaf.dtype.name for leaf in wide]
    assert got == ["float32", "float32", "float32", "float64", "complex64", "float32"]


def test_add_scaled_keeps_dtypes():
    x = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    total = tree.add_scaled(x, jnp.float32(0.5), x)
    assert jax.tree.map(lambda leaf: leaf.dtype, total) == {
        "a": jnp.bfloat16,
        "b": jnp.float32,
    }
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 1.5), total)
