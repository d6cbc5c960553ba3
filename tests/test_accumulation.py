"""Microbatches one by one against the mini-batch as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg
from optax_nlcg.flax import TrainState

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


def in_parts(optimizer, spoil=None, bad=(jnp.nan, jnp.nan)):
    """Trains on microbatches; one more, of a bad gradient and loss, before `spoil`."""
    params, state = PARAMS, optimizer.init(PARAMS)
    parts = FEATURES.reshape(4, 8, 5), TARGETS.reshape(4, 8)

    @jax.jit
    def step(params, state, *part):
        value, grads = jax.value_and_grad(loss_fn)(params, *part)
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for i in range(NUM_STEPS * NUM_MICROBATCHES):
        if spoil == i:
            of_gradient, value = bad
            grads = optax.tree.full_like(params, of_gradient)
            updates, state = optimizer.update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
        # Another one is the last of each mini-batch.
        which = (i + i // NUM_MICROBATCHES) % NUM_MICROBATCHES
        params, state = step(params, state, *(x[which] for x in parts))
    return params, state


SEARCHES = {
    "nonlinear_cg": optax_nlcg.nonlinear_cg,
    "curvature": lambda: optax_nlcg.nlcg(
        1.0, line_search=optax_nlcg.scale_by_curvature_line_search(3, decay=0.0)
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("order", [range(4), range(3, -1, -1)])
def test_a_search_is_given_the_gradient_of_the_mini_batch(name, order):
    """Whatever the order: nobody passes it here, the training state does."""
    parts = FEATURES.reshape(4, 8, 5), TARGETS.reshape(4, 8)

    def train(optimizer, batches, num_steps=4):
        state = TrainState.create(apply_fn=None, params=PARAMS, tx=optimizer)
        for features, targets in num_steps * batches:
            value, grads = jax.value_and_grad(loss_fn)(state.params, features, targets)
            state = state.apply_gradients(
                grads=grads,
                value=value,
                value_fn=lambda p: loss_fn(p, FEATURES, TARGETS),
            )
        return state.params

    expected = train(SEARCHES[name](), [(FEATURES, TARGETS)])
    optimizer = optax_nlcg.multi_steps(SEARCHES[name](), NUM_MICROBATCHES)
    params = train(optimizer, [tuple(x[i] for x in parts) for i in order])
    assert_close(params, expected)


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


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.1), lambda: optax_nlcg.nlcg(0.1)])
@pytest.mark.parametrize("of_params", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("of_gradient", ["bfloat16", "float32", "float64"])
def test_gradients_of_another_dtype(x64, make, of_params, of_gradient):
    params, gradient = jnp.zeros(3, of_params), jnp.ones(3, of_gradient)
    optimizer = optax_nlcg.multi_steps(make(), 2)
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(gradient, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    assert params.dtype == of_params
    assert (params < 0).all()


@pytest.mark.parametrize("every_k", [2, np.int64(2), np.array(2), jnp.array(2)])
def test_integers_of_all_kinds(every_k):
    optimizer = optax_nlcg.multi_steps(optax.sgd(1.0), every_k)
    state = optimizer.init(jnp.zeros(3))
    _, state = optimizer.update(jnp.ones(3), state)
    updates, _ = optimizer.update(jnp.ones(3), state)
    np.testing.assert_array_equal(updates, -1.0)


def test_a_loss_that_is_no_scalar_is_refused():
    optimizer, x = optax_nlcg.multi_steps(optax.sgd(1.0), 2), jnp.zeros(3)
    state = optimizer.init(x)
    with pytest.raises(ValueError, match=r"`value`.* as a real scalar"):
        optimizer.update(x, state, value=jnp.ones(1))


def test_real_and_complex_parameters_cannot_be_mixed():
    mixed = {"a": jnp.zeros(2), "z": jnp.zeros(2, jnp.complex64)}
    with pytest.raises(ValueError, match="all real or all complex"):
        optax_nlcg.multi_steps(optax.sgd(1.0), 4).init(mixed)


@pytest.mark.parametrize("bad", [(jnp.nan, jnp.nan), (jnp.nan, 1.0), (1.0, jnp.nan)])
@pytest.mark.parametrize("spoil", [0, 6, 7])
def test_microbatch_that_is_not_finite_is_left_out(spoil, bad):
    optimizer = optax_nlcg.multi_steps(OPTIMIZERS["step"](), NUM_MICROBATCHES)
    params, state = in_parts(optimizer, spoil, bad)
    assert state.num_skipped == 1
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
