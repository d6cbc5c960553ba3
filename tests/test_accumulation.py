"""Microbatches one by one against the mini-batch as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg

NUM_MICROBATCHES = 4
NUM_STEPS = 12

FEATURES = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
# Microbatches differ, so that the loss of one says little about that of all.
TARGETS = (FEATURES @ np.arange(5) + np.repeat([0, 3, -2, 5], 8)).astype(np.float32)


def loss_fn(params, features, targets):
    return jnp.mean((features @ params["w"] + params["b"] - targets) ** 2)


PARAMS = {"w": jnp.zeros(5), "b": jnp.zeros(())}

OPTIMIZERS = {
    # Rates at which the loss rises now and then: the search has something to do.
    "step": lambda: optax_nlcg.nlcg(1.0),
    "online": lambda: optax_nlcg.nlcg(
        1.0, line_search=optax_nlcg.scale_by_online_line_search()
    ),
    "no search": lambda: optax_nlcg.nlcg(0.05, line_search=optax.identity()),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
}


def whole(optimizer):
    """Trains on whole mini-batches: parameters and state after each step."""
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params, FEATURES, TARGETS)
        extra = optax.with_extra_args_support(optimizer)
        updates, state = extra.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(NUM_STEPS):
        params, state = step(params, state)
    return params, state


def in_parts(optimizer, spoil=None):
    """Trains on microbatches; `spoil` turns a call's gradient into another one."""
    params, state = PARAMS, optimizer.init(PARAMS)
    parts = FEATURES.reshape(4, 8, 5), TARGETS.reshape(4, 8)

    @jax.jit
    def step(params, state, *part):
        value, grads = jax.value_and_grad(loss_fn)(params, *part)
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for i in range(NUM_STEPS * NUM_MICROBATCHES):
        if spoil == i:
            bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
            updates, state = optimizer.update(bad, state, params, value=jnp.nan)
            params = optax.apply_updates(params, updates)
        # Another one is the last of each mini-batch.
        which = (i + i // NUM_MICROBATCHES) % NUM_MICROBATCHES
        params, state = step(params, state, *(x[which] for x in parts))
    return params, state


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_microbatches_are_the_mini_batch(name):
    make = OPTIMIZERS[name]
    params, state = in_parts(optax_nlcg.multi_steps(make(), NUM_MICROBATCHES))
    expected, expected_state = whole(make())
    assert_close(params, expected)
    scale = optax.tree.get(state, "scale", None)
    if scale is not None:
        assert float(optax.tree.get(expected_state, "scale")) < 1
        np.testing.assert_allclose(scale, optax.tree.get(expected_state, "scale"))


def test_optax_multi_steps_shows_the_search_one_microbatch():
    """Why there is a wrapper; when this fails there need not be one any more."""
    params, _ = in_parts(optax.MultiSteps(OPTIMIZERS["online"](), NUM_MICROBATCHES))
    expected, _ = whole(OPTIMIZERS["online"]())
    assert np.max(np.abs(params["w"] - expected["w"])) > 1e-3


@pytest.mark.parametrize("dtype", ["float64", "complex64", "complex128"])
def test_sums_are_as_wide_as_the_parameters(dtype):
    with jax.enable_x64(dtype != "complex64"):
        rng = np.random.default_rng(1)
        parts = rng.normal(size=(4, 3)) + 1j * rng.normal(size=(4, 3))
        parts = parts.astype(dtype) if "complex" in dtype else parts.real
        params = jnp.zeros(3, dtype)
        optimizer = optax_nlcg.multi_steps(optax.sgd(1.0), 4)
        state = optimizer.init(params)
        for part in jnp.asarray(parts):
            updates, state = optimizer.update(part, state, params, value=1.0)
        assert updates.dtype == dtype
        precision = 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(updates, -parts.mean(0), rtol=precision)


def test_sums_of_weakly_typed_gradients_are_wide():
    with jax.enable_x64(True):
        params = jnp.asarray(0.0)
        assert params.weak_type
        optimizer = optax_nlcg.multi_steps(optax.sgd(1.0), 2)
        state = optimizer.init(params)
        for part in (0.1, 0.2):
            updates, state = optimizer.update(jnp.asarray(part), state, params)
        np.testing.assert_allclose(updates, -0.15, rtol=1e-15)


def test_a_loss_wider_than_the_parameters_leaves_the_types_of_the_state():
    with jax.enable_x64(True):
        params = jnp.zeros(3, jnp.float32)
        optimizer = optax_nlcg.multi_steps(optax_nlcg.nlcg(0.1), 2)
        state = optimizer.init(params)
        value = jnp.ones((), jnp.float64)
        _, new = jax.eval_shape(optimizer.update, params, state, params, value=value)
        got, want = (
            [leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (new, state)
        )
        assert got == want


def test_real_and_complex_parameters_cannot_be_mixed():
    mixed = {"a": jnp.zeros(2), "z": jnp.zeros(2, jnp.complex64)}
    with pytest.raises(ValueError, match="all real or all complex"):
        optax_nlcg.multi_steps(optax.sgd(1.0), 4).init(mixed)


@pytest.mark.parametrize("spoil", [0, 6, 7])
def test_microbatch_that_is_not_finite_is_left_out(spoil):
    optimizer = optax_nlcg.multi_steps(OPTIMIZERS["step"](), NUM_MICROBATCHES)
    params, state = in_parts(optimizer, spoil)
    expected, expected_state = in_parts(optimizer)
    assert_close(params, expected)
    assert state.multi_steps.gradient_step == NUM_STEPS
    np.testing.assert_allclose(state.value_sum, expected_state.value_sum, rtol=1e-4)


def test_number_of_microbatches_may_follow_a_schedule():
    # Two microbatches for the first update, then four.
    optimizer = optax_nlcg.multi_steps(
        optax_nlcg.nlcg(0.1), lambda step: jnp.where(step == 0, 2, 4)
    )
    state, updated = optimizer.init(PARAMS), []
    for _ in range(6):
        updates, state = optimizer.update(
            jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS, value=jnp.ones(())
        )
        updated.append(bool(updates["b"] != 0))
    assert updated == [False, True, False, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (optax_nlcg.nlcg, 2),
            TypeError,
            "`optimizer` must be an Optax transformation",
        ),
        ((optax_nlcg.nlcg(0.1), 0), ValueError, r"`every_k` must be .* got 0"),
        ((optax_nlcg.nlcg(0.1), 2.0), TypeError, "`every_k` must be an integer"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        optax_nlcg.multi_steps(*arguments)
