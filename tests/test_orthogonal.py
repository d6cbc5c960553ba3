"""Orthogonalisation against singular values and against Optax's Muon."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_nlcg
from tests.common import draw, orthogonalize

SHAPES = [(5, 5), (4, 9), (9, 4), (3, 3, 2, 8), (1, 6), (6, 1)]


def columns_last(x):
    return tuple(range(x.ndim - 1)), x.ndim - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_singular_values_become_one(shape):
    with jax.enable_x64(True):
        gradient = draw(shape, dtype=np.float64)
        z = orthogonalize(gradient)
        matrix = gradient.reshape(-1, shape[-1])
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        z = np.asarray(z).reshape(matrix.shape) / (0.2 * max(matrix.shape) ** 0.5)
        values = u.T @ z @ vt.T
        # What five steps of Muon's iteration make of singular values that are not small
        assert s.min() / np.linalg.norm(s) > 0.01
        assert np.all((np.diag(values) > 0.65) & (np.diag(values) < 1.25))
        np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=1e-12)
        np.testing.assert_allclose(u @ values @ vt, z, atol=1e-12)  # nothing else
        # The nuclear norm, roughly: a metric.
        assert 0.65 * s.sum() < np.sum(matrix * z) < 1.25 * s.sum()


@pytest.mark.skipif(
    "consistent_rms" not in inspect.signature(optax.contrib.muon).parameters,
    reason="this Optax's Muon takes no kernels and has no `consistent_rms`",
)
@pytest.mark.parametrize(
    ("numbers", "given"),
    [
        (columns_last, False),
        (columns_last, True),
        (lambda x: (0, tuple(range(1, x.ndim))), True),
        (lambda x: (-1, -2), True),
    ],
)
def test_is_muon_without_momentum(numbers, given):
    """Matrices by Newton-Schulz, the rest by Adam, step after step."""

    def dimensions(params):
        return jax.tree.map(
            lambda x: (
                optax.contrib.MuonDimensionNumbers(*numbers(x)) if x.ndim > 1 else None
            ),
            params,
        )

    muon = optax.contrib.muon(
        -1.0,
        beta=0.0,
        nesterov=False,
        adam_b1=0.0,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    )
    tx = optax_nlcg.scale_by_orthogonalization(dimensions if given else None)
    trees = [
        {str(shape): draw(shape, seed) for shape in [*SHAPES, (7,), ()]}
        for seed in range(3)
    ]
    got_state, want_state = tx.init(trees[0]), muon.init(trees[0])
    for gradients in trees:
        got, got_state = tx.update(gradients, got_state, gradients)
        want, want_state = muon.update(gradients, want_state, gradients)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4),
            got,
            want,
        )


@pytest.mark.parametrize(
    ("choice", "matrix_of"),
    [
        ((1, (2, 3)), lambda x, i: x[i].reshape(5, 14)),
        (((-1, 2), 1), lambda x, i: x[i].transpose(2, 1, 0).reshape(14, 5)),
        (([0, 1, 2], 3), lambda x, i: x.reshape(-1, 7)),
        (True, lambda x, i: x.reshape(-1, 7)),
    ],
)
def test_axes_say_what_the_matrices_are(choice, matrix_of):
    x = draw((3, 5, 2, 7))
    z = orthogonalize({"w": x}, {"w": choice})["w"]
    assert z.shape == x.shape
    for i in range(len(x)):
        np.testing.assert_allclose(
            matrix_of(z, i), orthogonalize(matrix_of(x, i)), rtol=1e-4, atol=1e-5
        )


@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-36, 36), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_length_of_the_gradient_does_not_matter(exponent, dtype):
    gradient = draw((4, 6))
    # A power of two changes no digit.
    scaled = (gradient * 2.0 ** (3 * exponent)).astype(dtype)
    z = orthogonalize(scaled)
    assert z.dtype == dtype
    np.testing.assert_array_equal(z, orthogonalize(gradient.astype(dtype)))


@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-12, 12))
def test_length_of_a_narrow_gradient_does_not_matter(exponent):
    """Down to where float16 has digits left; reciprocals of entries do not fit."""
    gradient = draw((4, 6)).astype(jnp.float16)
    scaled = gradient * jnp.asarray(2.0**exponent, jnp.float16)
    smallest = jnp.min(jnp.abs(scaled.astype(jnp.float32)))
    rtol = float(2.0**-24 / smallest)  # of the last digit of the smallest entry
    z = orthogonalize(scaled).astype(jnp.float32)
    want = orthogonalize(gradient).astype(jnp.float32)
    np.testing.assert_allclose(z, want, rtol=0.01 + rtol, atol=0.01 + rtol)


def test_float16_and_zero():
    tiny = jnp.full((3, 4), 2.0**-24, jnp.float16)
    np.testing.assert_array_equal(orthogonalize(tiny), orthogonalize(2.0**15 * tiny))
    # Neither squares nor, of the largest entry being one, their sum fit.
    z = orthogonalize(60_000 * jnp.ones((300, 300), jnp.float16))
    assert jnp.all((z > 0) & (z < jnp.inf))
    np.testing.assert_array_equal(orthogonalize(jnp.zeros((3, 4))), np.zeros((3, 4)))
    np.testing.assert_array_equal(orthogonalize(jnp.zeros(4)), np.zeros(4))


def test_matrices_without_entries():
    x = {"w": draw((2, 3)), "none": jnp.ones((0, 3))}
    z = orthogonalize(x)
    assert z["none"].shape == (0, 3)
    np.testing.assert_array_equal(z["w"], orthogonalize(x["w"]))


def test_squares_that_do_not_fit_do_not_stay():
    tx = optax_nlcg.scale_by_orthogonalization()
    state = tx.init(jnp.ones(2, jnp.float16))
    for size in (1e4, 1.0):
        z, state = tx.update(jnp.array([size, 1.0], jnp.float16), state)
        assert jnp.all((z > 0) & (z < jnp.inf))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_chosen_matrices_take_no_memory_and_the_rest_is_adams():
    params = {"kernel": draw((4, 6)), "embedding": draw((8, 3)), "bias": draw((5,))}
    params["bias"] *= 1e-5  # whose squares are less than Adam's epsilon
    chosen = {"kernel": True, "embedding": False, "bias": False}
    adam = optax.scale_by_adam(b1=0.0)
    want, _ = adam.update(params, adam.init(params))
    for matrices in (chosen, lambda tree: {name: chosen[name] for name in tree}):
        tx = optax_nlcg.scale_by_orthogonalization(matrices)
        z, state = tx.update(params, tx.init(params))
        for name in ("embedding", "bias"):
            np.testing.assert_allclose(z[name], want[name], rtol=1e-5)
        np.testing.assert_allclose(
            z["kernel"], orthogonalize(params["kernel"]), rtol=1e-6
        )
        sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
        assert sizes == [1, 5, 24]
    # In `nlcg`, with no search: the direction, and this.
    optimizer = optax_nlcg.nlcg(
        0.1,
        preconditioner=optax_nlcg.scale_by_orthogonalization(),
        line_search=optax.identity(),
    )
    state = optimizer.init({"kernel": jnp.zeros((100, 100))})
    assert 10_000 <= sum(leaf.size for leaf in jax.tree.leaves(state)) < 10_020


@pytest.mark.parametrize(
    ("matrices", "error", "message"),
    [
        ({"w": 1}, TypeError, "`matrices` must be a tree of bools"),
        ("w", TypeError, "`matrices` must be a tree of bools"),
        (lambda params: {"w": "yes"}, TypeError, "`matrices` must be a tree of bools"),
        ({"w": True}, ValueError, r"shape \(3,\) and dtype float32: leave it out"),
        ({"v": True}, ValueError, "`matrices` must be a tree like the parameters"),
    ],
)
def test_bad_choices(matrices, error, message):
    with pytest.raises(error, match=message):
        optax_nlcg.scale_by_orthogonalization(matrices).init({"w": jnp.ones(3)})
    complex_ones = {"w": jnp.ones((2, 2), jnp.complex64)}
    with pytest.raises(ValueError, match="dtype complex64: leave it out"):
        optax_nlcg.scale_by_orthogonalization({"w": True}).init(complex_ones)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ((0, 2), ValueError, r"has \(0, 2\) for an array of shape \(2, 3\)"),
        ((1, 2), ValueError, "name axes that there are"),
        ((0, -3), ValueError, "name axes that there are"),
        ((0, -2), ValueError, r"has \(0, -2\) for an array .* each once"),
        ((0, ()), ValueError, "at least one for rows and one for columns"),
        ((0, "1"), TypeError, "`matrices` must be a tree of bools or pairs"),
    ],
)
def test_bad_axes(choice, error, message):
    with pytest.raises(error, match=message):
        orthogonalize({"w": jnp.ones((2, 3))}, lambda params: {"w": choice})
    with pytest.raises(ValueError, match=r"shape \(3,\) and dtype float32: leave it"):
        orthogonalize({"w": jnp.ones(3)}, {"w": (0, 1)})


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_parameters_that_are_no_matrices(dtype):
    """As in float32: squares of gradients need not fit, nor their slow average."""
    tx = optax_nlcg.scale_by_orthogonalization()
    gradients = jnp.asarray([[1e-3, 0, -2e-4, 200]] + 99 * [[1e-4, 0, 3e-4, 1]], dtype)
    states = {d: tx.init(gradients[0].astype(d)) for d in (dtype, jnp.float32)}
    for gradient in gradients:
        z = {}
        for d in states:
            z[d], states[d] = tx.update(gradient.astype(d), states[d])
        assert z[dtype].dtype == dtype
        np.testing.assert_allclose(
            z[dtype].astype(jnp.float32), z[jnp.float32], rtol=0.01
        )


def test_choices_made_by_numpy():
    params = {"kernel": draw((4, 3, 5)), "bias": draw((3,)), "other": draw((4, 5))}
    by_numpy = {
        "kernel": (np.int64(0), (np.int32(1), np.int64(2))),
        "bias": np.False_,
        "other": np.True_,
    }
    z = orthogonalize(params, by_numpy)
    want = orthogonalize(params, {"kernel": (0, (1, 2)), "bias": False, "other": True})
    jax.tree.map(np.testing.assert_array_equal, z, want)


def test_rank_promotion_may_be_an_error():
    with jax.numpy_rank_promotion("raise"):
        params = {"layers": draw((3, 4, 5)), "bias": draw((3,))}
        orthogonalize(params, {"layers": (1, 2), "bias": False})


def test_masked_parameters_need_no_choice():
    params = {"kernel": draw((4, 6)), "frozen": draw((8, 3)), "bias": draw((5,))}
    chosen = {"kernel": True, "frozen": True, "bias": False}
    tx = optax.masked(
        optax_nlcg.scale_by_orthogonalization(chosen),
        {"kernel": True, "frozen": False, "bias": True},
    )
    z, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(z["frozen"], params["frozen"])
    np.testing.assert_allclose(z["kernel"], orthogonalize(params["kernel"]), rtol=1e-6)
    np.testing.assert_allclose(z["bias"], np.sign(params["bias"]), rtol=1e-5)
