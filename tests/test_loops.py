"""Training loops of Flax, Equinox and plain JAX."""

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import optax_nlcg
from optax_nlcg.flax import TrainState
from tests import cases

FEATURES = np.random.default_rng(0).normal(size=(16, 4))
TARGETS = np.sin(FEATURES @ np.arange(4.0))
START = {
    "hidden": 0.5 * np.random.default_rng(1).normal(size=(4, 6)),
    "out": 0.5 * np.random.default_rng(2).normal(size=(6,)),
}
NUM_STEPS = 6

OPTIMIZERS = {
    "nlcg": lambda: optax_nlcg.nlcg(0.1),
    "nonlinear_cg": optax_nlcg.nonlinear_cg,
}


def predict(params, features):
    return jnp.tanh(features @ params["hidden"]) @ params["out"]


def loss(params):
    return jnp.mean((predict(params, FEATURES) - TARGETS) ** 2)


def plain_loop(tx):
    params = jax.tree.map(jnp.asarray, START)
    state = tx.init(params)

    @cases.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    for _ in range(NUM_STEPS):
        params, state = step(params, state)
    return params


def linen_loop(tx):
    class Network(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            params = {
                name: self.param(name, lambda key, name=name: jnp.asarray(START[name]))
                for name in START
            }
            return predict(params, x)

    network = Network()
    params = network.init(jax.random.key(0), FEATURES)["params"]
    state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)

    @cases.jit
    def step(state):
        def value_fn(params):
            predicted = state.apply_fn({"params": params}, FEATURES)
            return jnp.mean((predicted - TARGETS) ** 2)

        value, grads = jax.value_and_grad(value_fn)(state.params)
        return state.apply_gradients(grads=grads, value=value, value_fn=value_fn)

    for _ in range(NUM_STEPS):
        state = step(state)
    return state.params


def nnx_loop(tx):
    class Network(flax.nnx.Module):
        def __init__(self):
            self.hidden = flax.nnx.Param(jnp.asarray(START["hidden"]))
            self.out = flax.nnx.Param(jnp.asarray(START["out"]))

        def __call__(self, x):
            return predict({"hidden": self.hidden[...], "out": self.out[...]}, x)

    model = Network()
    optimizer = flax.nnx.Optimizer(model, tx, wrt=flax.nnx.Param)

    @flax.nnx.jit
    def step(model, optimizer):
        graph, params, rest = flax.nnx.split(model, flax.nnx.Param, ...)

        def value_fn(params):
            merged = flax.nnx.merge(graph, params, rest)
            return jnp.mean((merged(FEATURES) - TARGETS) ** 2)

        value, grads = jax.value_and_grad(value_fn)(params)
        optimizer.update(model, grads, value=value, grad=grads, value_fn=value_fn)

    for _ in range(NUM_STEPS):
        step(model, optimizer)
    return {"hidden": model.hidden[...], "out": model.out[...]}


def equinox_loop(tx):
    equinox = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Network(equinox.Module):
        hidden: jax.Array
        out: jax.Array
        name: str = "network"  # not an array: filtered out of the parameters

        def __call__(self, x):
            return predict({"hidden": self.hidden, "out": self.out}, x)

    model = Network(jnp.asarray(START["hidden"]), jnp.asarray(START["out"]))
    state = tx.init(equinox.filter(model, equinox.is_inexact_array))

    @equinox.filter_jit
    def step(model, state):
        params, static = equinox.partition(model, equinox.is_inexact_array)

        def value_fn(params):
            whole = equinox.combine(params, static)
            return jnp.mean((whole(FEATURES) - TARGETS) ** 2)

        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn
        )
        return equinox.apply_updates(model, updates), state

    for _ in range(NUM_STEPS):
        model, state = step(model, state)
    return {"hidden": model.hidden, "out": model.out}


LOOPS = {"linen": linen_loop, "nnx": nnx_loop, "equinox": equinox_loop}


@pytest.fixture(scope="module")
def plain():
    with jax.enable_x64(True):
        return {name: plain_loop(make()) for name, make in OPTIMIZERS.items()}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_loop_gives_the_same(plain, name, loop):
    # In double precision: a search amplifies rounding.
    with jax.enable_x64(True):
        got = LOOPS[loop](OPTIMIZERS[name]())
        assert loss(plain[name]) < 0.7 * loss(START)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), dict(got), plain[name]
    )


def test_flax_linens_own_state_takes_no_loss():
    """Why there is another one; when this fails there need not be."""
    state = train_state.TrainState.create(
        apply_fn=None, params={"w": jnp.ones(2)}, tx=optax_nlcg.nlcg(0.1)
    )
    with pytest.raises((TypeError, ValueError)):
        state.apply_gradients(grads=state.params, value=1.0)


def test_none_leaves():
    """Where there is no parameter there is no update: Equinox's filtered models."""
    tx = OPTIMIZERS["nlcg"]()
    params = {"a": jnp.ones(2), "b": None}
    updates, state = tx.update(params, tx.init(params), params, value=1.0)
    assert updates["b"] is None
    _, state = tx.update(params, state, params, value=1.0)
    assert optax.tree.get(state, "previous_params")["b"] is None


@pytest.mark.parametrize("name", ["nlcg", "diagonal_estimated", "lars"])
def test_numbers_of_python_and_numpy(name):
    """They are parameters to Optax, and to `jax.grad`."""
    tx = cases.OPTIMIZERS[name]()
    plain = {"a": 2.0, "b": np.array([3.0, 4.0])}
    arrays = jax.tree.map(jnp.float32, plain)
    step = cases.make_step("diagonal_estimated", tx)  # without a given diagonal
    got, want = (step(params, tx.init(params))[0] for params in (plain, arrays))
    jax.tree.map(np.testing.assert_array_equal, got, want)
