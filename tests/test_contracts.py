"""What every transformation of the library promises, whatever it computes."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg
from tests import common

TRANSFORMATIONS = {
    "nlcg": lambda: optax_nlcg.nlcg(0.01),
    "nlcg_hz": lambda: optax_nlcg.nlcg(0.01, beta_rule="hager_zhang"),
    "direction": optax_nlcg.scale_by_conjugate_direction,
    "direction_pr_restarts": lambda: optax_nlcg.scale_by_conjugate_direction(
        beta_rule="polak_ribiere", restart_every=5, restart_threshold=0.2
    ),
    "bfgs": optax_nlcg.scale_by_diagonal_bfgs,
    "hessian_diagonal": optax_nlcg.scale_by_hessian_diagonal,
    "step": optax_nlcg.scale_by_step_line_search,
    "step_no_rollback": lambda: optax_nlcg.scale_by_step_line_search(rollback=False),
    "online": optax_nlcg.scale_by_online_line_search,
    "ml_ncg": lambda: optax_nlcg.reference.ml_ncg(0.01),
    "ml_ncg_pr_lars": lambda: optax_nlcg.reference.ml_ncg(
        0.01, update_rule="PR", line_search="Online", lars_lr=0.01
    ),
}
DTYPES = {
    "bfloat16": 0,
    "float16": 0,
    "float32": 0,
    "float64": 1,
    "complex64": 0,
    "complex128": 1,
    "mixed": 0,
}


@pytest.fixture(params=TRANSFORMATIONS)
def tx(request):
    return TRANSFORMATIONS[request.param]()


def tree_of(dtype, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(shape, dtype):
        x = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return jnp.asarray(x, dtype)

    if dtype == "mixed":
        kinds = (jnp.float32, jnp.bfloat16, jnp.complex64)
    else:
        kinds = (jnp.dtype(dtype),) * 3
    a, b, c = kinds
    return {"w": leaf((3, 4), a), "b": [leaf((4,), b), leaf((1,), c)]}


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def loop(tx, params, steps=4, **extra_args):
    """A few jitted steps with made-up gradients; updates and state of the last."""
    state = tx.init(params)
    update = jax.jit(lambda g, s, p, v: tx.update(g, s, p, value=v, **extra_args))
    for t in range(steps):
        grads = optax.tree.scale(1 + 0.1 * t, params)
        updates, state = update(grads, state, params, jnp.float32(2.0 + t))
        params = optax.apply_updates(params, optax.tree.scale(-0.01, updates))
    return updates, state, update


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_are_kept(tx, dtype):
    with jax.enable_x64(bool(DTYPES[dtype])):
        params = tree_of(dtype)
        init = tx.init(params)
        updates, state, update = loop(tx, params)
        assert types(updates) == types(params)
        assert types(state) == types(init)
        assert update._cache_size() == 1
        scalars = [
            leaf
            for leaf in jax.tree.leaves(state)
            if leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        wide = jnp.float64 if DTYPES[dtype] else jnp.float32
        assert all(leaf.dtype == wide for leaf in scalars)
        for leaf in jax.tree.leaves((updates, state)):
            assert jnp.all(jnp.isfinite(leaf))


def test_unknown_extra_arguments_are_ignored(tx):
    params = tree_of("float32")
    want, _, _ = loop(tx, params)
    got, _, _ = loop(tx, params, surprise=3.0, hessian_diagonal=None)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_abstract_init(tx):
    params = tree_of("float32")
    abstract = jax.eval_shape(tx.init, params)
    concrete = tx.init(params)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    jax.tree.map(
        lambda a, c: np.testing.assert_equal(a.shape, c.shape), abstract, concrete
    )


def test_donation(tx):
    # Parameters and state are both given away: no buffer may serve twice.
    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    params = tree_of("float32")
    state = tx.init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    want, _ = step(params, state)
    got, _ = donating(params, state)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))


def test_scan_equals_loop(tx):
    params = tree_of("float32")
    gradients = [tree_of("float32", seed) for seed in range(1, 6)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)

    def step(carry, grads):
        params, state = carry
        value = optax.tree.norm(grads)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, tx.init(params))
    (scanned, _), _ = jax.lax.scan(step, carry, stacked)
    for grads in gradients:
        carry, _ = jax.jit(step)(carry, grads)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        scanned,
        carry[0],
    )


def test_vmapped_lane_equals_single_run(tx):
    lanes = 3
    params = [tree_of("float32", seed) for seed in range(lanes)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

    def run(params):
        state = tx.init(params)
        for t in range(3):
            grads = optax.tree.scale(1 - 0.3 * t, params)
            value = optax.tree.norm(params)
            updates, state = tx.update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
        return params

    batched = jax.vmap(run)(stacked)
    for lane, single in enumerate(params):
        got = jax.tree.map(operator.itemgetter(lane), batched)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6),
            got,
            run(single),
        )


def test_stable_through_cond(tx):
    params = tree_of("float32")
    state = tx.init(params)

    def step(state):
        return tx.update(params, state, params, value=1.0)[1]

    out = jax.lax.cond(jnp.array(True), step, lambda state: state, state)
    assert types(out) == types(state)


def test_tree_map_params(tx):
    params = tree_of("float32")
    state = tx.init(params)
    marked = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert jax.tree.structure(marked) == jax.tree.structure(state)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_recovers_from_a_gradient_that_is_not_finite(tx, bad):
    params = tree_of("float32")
    state = tx.init(params)
    for t in range(6):
        grads = optax.tree.full_like(params, bad) if t == 2 else params
        updates, state = tx.update(grads, state, params, value=1.0)
        assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((updates, state)))
        params = optax.apply_updates(params, optax.tree.scale(-0.01, updates))


@pytest.mark.parametrize("params", [{}, jnp.ones(()), (), [jnp.ones((0, 3))]])
def test_degenerate_trees(tx, params):
    updates, _ = tx.update(params, tx.init(params), params, value=1.0)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


COMPLETE = {
    "nlcg": lambda lr: optax_nlcg.nlcg(lr),
    "nlcg_online": lambda lr: optax_nlcg.nlcg(
        lr, line_search=optax_nlcg.scale_by_online_line_search()
    ),
    "ml_ncg": lambda lr: optax_nlcg.reference.ml_ncg(lr),
}


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_converges(name, dtype):
    target = jnp.arange(1, 4).astype(dtype)

    def fun(x):
        return jnp.sum(jnp.abs(x - target).astype(jnp.float32) ** 2)

    tx = optax.chain(optax.stateless(_conjugate), COMPLETE[name](0.1))
    params, _, losses = common.descend(tx, fun, jnp.zeros_like(target), 60)
    assert losses[-1] < 1e-2 * losses[0]
    assert params.dtype == target.dtype


def _conjugate(updates, params):
    """JAX's gradient of a real function of complex numbers is conjugated."""
    del params
    return jax.tree.map(jnp.conj, updates)
