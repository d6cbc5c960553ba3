"""The diagonal BFGS preconditioner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_nlcg


def run(tx, params, gradients):
    state, outputs = tx.init(params[0]), []
    for x, g in zip(params, gradients, strict=True):
        z, state = tx.update(g, state, x)
        outputs.append(z)
    return outputs, state


def test_is_the_diagonal_of_a_full_bfgs_update():
    rng = np.random.default_rng(0)
    x0, s, g0, y = rng.normal(size=(4, 6))
    y = np.sign(y @ s) * y
    with jax.enable_x64(True):
        params, gradients = jnp.asarray([x0, x0 + s]), jnp.asarray([g0, g0 + y])
        tx = optax_nlcg.scale_by_diagonal_bfgs(initial=2.0)
        outputs, state = run(tx, params, gradients)
    h = 2.0 * np.eye(6)
    full = h - h @ np.outer(s, s) @ h / (s @ h @ s) + np.outer(y, y) / (y @ s)
    np.testing.assert_allclose(state.diagonal, np.abs(np.diag(full)), rtol=1e-12)
    want = (g0 + y) / (np.abs(np.diag(full)) + 1e-8)
    np.testing.assert_allclose(outputs[1], want, rtol=1e-12)
    np.testing.assert_allclose(outputs[0], g0 / 2.0, rtol=1e-7)


@pytest.mark.parametrize(
    "case", ["no step", "negative curvature", "tiny", "tiny step", "tiny change"]
)
def test_keeps_the_estimate_without_curvature(case):
    x0, g0 = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    s, y = {
        "no step": (0.0, 1.0),
        "negative curvature": (0.1, -1.0),
        "tiny": (1e-6, 1e-6),
        "tiny step": (2e-5, 1.0),
        "tiny change": (1e-2, 1.2e-7),
    }[case]
    tx = optax_nlcg.scale_by_diagonal_bfgs()
    _, state = run(tx, [x0, x0 + s], [g0, g0 + y])
    np.testing.assert_array_equal(state.diagonal, 1.0)


def test_no_threshold_still_keeps_zero_curvature_out():
    x, g = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    tx = optax_nlcg.scale_by_diagonal_bfgs(curvature_eps=0.0)
    _, state = run(tx, [x, x], [g, g])
    np.testing.assert_array_equal(state.diagonal, 1.0)


def test_a_second_application_at_the_same_point_is_the_same_matrix():
    rng = np.random.default_rng(1)
    params, gradients = jnp.asarray(rng.normal(size=(2, 2, 5)), jnp.float32)
    tx = optax_nlcg.scale_by_diagonal_bfgs()
    _, state = run(tx, params, gradients)
    v = jnp.asarray(rng.normal(size=5), jnp.float32)
    z, again = tx.update(v, state, params[-1])
    np.testing.assert_array_equal(again.diagonal, state.diagonal)
    np.testing.assert_allclose(z, v / (state.diagonal + 1e-8), rtol=1e-6)


def test_applies_its_matrix_without_a_refresh():
    rng = np.random.default_rng(1)
    params, gradients = jnp.asarray(rng.normal(size=(2, 2, 5)), jnp.float32)
    tx = optax_nlcg.scale_by_diagonal_bfgs()
    _, state = run(tx, params, gradients)
    v = jnp.asarray([1.0, np.nan, 3.0, np.inf, 5.0])
    z, same = tx.update(v, state, params[-1], _refresh=False, _mask=False)
    assert same is state
    np.testing.assert_allclose(z, v / (state.diagonal + 1e-8), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_skips_gradients_that_are_not_finite(bad):
    rng = np.random.default_rng(2)
    params, gradients = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    tx = optax_nlcg.scale_by_diagonal_bfgs()
    _, want = run(tx, params, gradients)
    gap = [*gradients[:2], gradients[2].at[0].set(bad), gradients[2]]
    _, state = run(tx, [*params, params[2]], gap)
    assert state.num_skipped == 1
    np.testing.assert_array_equal(state.diagonal, want.diagonal)


@pytest.mark.parametrize(("dtype", "eps"), [(jnp.float16, 1e-8), (jnp.float32, 0.0)])
def test_an_entry_by_which_the_gradient_overflows_starts_anew(dtype, eps):
    """Every later step would be skipped, and skipped steps correct nothing."""
    x, g = jnp.array([[1.0, 2.0], [0.5, -1.0]], dtype)
    tx = optax_nlcg.scale_by_diagonal_bfgs(initial=2.0, eps=eps)
    state = tx.init(x)._replace(diagonal=jnp.array([1e-7 * (eps > 0), 4.0], dtype))
    bad, kept = tx.update(g.at[1].set(jnp.nan), state, x)
    np.testing.assert_array_equal(bad, 0)
    np.testing.assert_array_equal(kept.diagonal, state.diagonal)
    z, state = tx.update(g, state, x)
    np.testing.assert_array_equal(z, jnp.array([0.25, -0.25], dtype))
    np.testing.assert_array_equal(state.diagonal, jnp.array([2.0, 4.0], dtype))


def test_a_gradient_wider_than_the_parameters_has_no_curvature_by_rounding():
    rng = np.random.default_rng(6)
    params = jnp.asarray(rng.normal(size=(4, 64)), jnp.bfloat16)
    gradient = jnp.asarray(rng.normal(size=64), jnp.float32)
    for scale in (0.1, 10.0):  # steps along either sign: y's would have both
        tx = optax_nlcg.scale_by_diagonal_bfgs()
        _, state = run(tx, scale * params, [gradient] * 4)
        np.testing.assert_array_equal(state.diagonal, 1.0)


def test_complex_is_two_reals():
    rng = np.random.default_rng(3)
    params, gradients = jnp.asarray(rng.normal(size=(2, 4, 2, 5)), jnp.float32)
    tx = optax_nlcg.scale_by_diagonal_bfgs()
    real, state = run(tx, params, gradients)

    def join(parts):
        return parts[:, 0] + 1j * parts[:, 1]

    joined, z_state = run(tx, join(params), join(gradients))
    np.testing.assert_allclose(joined, join(np.array(real)), rtol=1e-4)
    want = state.diagonal[0] + 1j * state.diagonal[1]
    np.testing.assert_allclose(z_state.diagonal, want, rtol=1e-4)
