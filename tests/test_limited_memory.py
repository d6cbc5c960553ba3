"""The limited-memory BFGS matrix."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_nlcg
from optax_nlcg.limited_memory import scale_by_limited_memory


def loss(params):
    x, y = params["x"], params["y"]
    return jnp.sum(jnp.arange(1, 7) * jnp.cosh(x - 1)) + jnp.sum((x[:4] - y) ** 2)


def start():
    return {"x": jnp.zeros(6), "y": jnp.full(4, 0.3)}


@pytest.mark.parametrize("memory_size", [1, 3, 10])
def test_is_what_optax_computes(memory_size):
    ours = scale_by_limited_memory(memory_size)
    theirs = optax.scale_by_lbfgs(memory_size)
    with jax.enable_x64(True):
        params = start()
        state, their_state = ours.init(params), theirs.init(params)
        for _ in range(12):
            grads = jax.grad(loss)(params)
            direction, state = jax.jit(ours.update)(grads, state, params)
            expected, their_state = theirs.update(grads, their_state, params)
            for got, want in zip(
                jax.tree.leaves(direction), jax.tree.leaves(expected), strict=True
            ):
                np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
            params = optax.tree.add_scale(params, -0.5, direction)


def test_is_the_product_with_the_matrix():
    """Against the recurrence for the whole matrix, over the last three pairs."""
    rng = np.random.default_rng(0)
    points, gradients = rng.normal(size=(2, 6, 5))
    for k in range(5):  # pairs with positive curvature
        gradients[k + 1] = gradients[k] + (points[k + 1] - points[k]) * rng.uniform(
            0.5, 3, size=5
        )
    tx = scale_by_limited_memory(3)
    with jax.enable_x64(True):
        state = tx.init(jnp.zeros(5))
        for x, g in zip(points, gradients, strict=True):
            direction, state = tx.update(jnp.asarray(g), state, jnp.asarray(x))
    s, y = points[5] - points[4], gradients[5] - gradients[4]
    h = s @ y / (y @ y) * np.eye(5)
    for k in (2, 3, 4):
        s, y = points[k + 1] - points[k], gradients[k + 1] - gradients[k]
        left = np.eye(5) - np.outer(s, y) / (s @ y)
        h = left @ h @ left.T + np.outer(s, s) / (s @ y)
    np.testing.assert_allclose(direction, h @ gradients[5], rtol=1e-10)
    # And so the last change of the gradient becomes the last step.
    np.testing.assert_allclose(h @ y, s, rtol=1e-10)


def run(tx, points, gradients):
    state = tx.init(points[0])
    for x, g in zip(points, gradients, strict=True):
        direction, state = tx.update(g, state, x)
    for leaf in jax.tree.leaves(state):
        assert jnp.all(jnp.isfinite(leaf))
    return direction


@pytest.mark.parametrize(
    ("step", "change"),
    [(0.1, -1.0), (0.1, 0.0), (0.0, 1.0), (1e-20, 1e-19), (1e15, 1e-25)],
    ids=["negative", "no change", "no step", "underflow", "no scale"],
)
def test_a_pair_without_curvature_is_left_out(step, change):
    tx = scale_by_limited_memory(3)
    x, g = jnp.array([1.0, 2.0]) * step, jnp.array([0.5, -1.0])
    unit = max(step, 1.0)
    later = [x + unit * jnp.array([0.3, 0.1]), x + unit * jnp.array([0.5, 0.4])]
    points = [jnp.zeros(2), x, *later]
    gradients = [-change * jnp.array([1.0, 2.0]), 0.0 * g, g + 1.0, 3.0 * g + 1.5]
    np.testing.assert_allclose(
        run(tx, points, gradients), run(tx, points[1:], gradients[1:]), rtol=1e-6
    )


@pytest.mark.parametrize("size", [jnp.nan, jnp.inf, 3e38])
def test_a_gradient_that_is_not_finite_is_as_if_it_had_not_been(size):
    tx = scale_by_limited_memory(3)
    points = [jnp.array([1.0, 2.0]) * k for k in range(4)]
    gradients = [g * jnp.array([0.5, 1.5]) + 1.0 for g in points]
    with_it = [*points[:2], points[1], *points[2:]]
    gradients_with_it = [*gradients[:2], jnp.full(2, size), *gradients[2:]]
    np.testing.assert_array_equal(
        run(tx, with_it, gradients_with_it), run(tx, points, gradients)
    )


def test_a_restored_state_may_be_of_numpy():
    tx, params = scale_by_limited_memory(2), start()
    state = tx.init(params)
    for scale in (1, 0.5, 0.7):
        grads = jax.tree.map(lambda x, s=scale: s * x, jax.grad(loss)(params))
        want, new_state = tx.update(grads, state, params)
        got, _ = tx.update(grads, jax.device_get(state), params)
        jax.tree.map(np.testing.assert_array_equal, got, want)
        state = new_state


def test_bfloat16_parameters_have_wide_inner_products():
    """1,000 entries, of which bfloat16 would count 256."""
    tx = scale_by_limited_memory(2)
    x, g = jnp.zeros(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16)
    direction, state = tx.update(g, tx.init(x), x)
    np.testing.assert_allclose(state.scale, 1000**-0.5, rtol=1e-6)
    direction, state = tx.update(2 * g, state, x + g)
    assert direction.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.weights[0], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(direction.astype(jnp.float32), 2.0, rtol=1e-2)


@pytest.mark.parametrize("context", [True, False], ids=["set_mesh", "no set_mesh"])
def test_minimize_on_an_explicit_mesh(context):
    """With its derivative; leaves are split in ways of their own."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    specs = {"x": P("d"), "y": P(None)}

    def solution(target, params):
        def shifted(p):
            return loss(jax.tree.map(lambda leaf: leaf - target, p))

        return optax_nlcg.minimize(shifted, params, tol=1e-4).params

    def slope(params):
        return jax.jacobian(solution)(0.5, params)

    with jax.set_mesh(mesh) if context else contextlib.nullcontext():
        params = {
            name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
            for name, leaf in start().items()
        }
        found, slopes = jax.jit(solution)(0.5, params), jax.jit(slope)(params)
        for name, spec in specs.items():
            assert jax.typeof(found[name]).sharding.spec == spec
            np.testing.assert_allclose(found[name], 1.5, atol=1e-3)
            np.testing.assert_allclose(slopes[name], 1.0, rtol=1e-3)
