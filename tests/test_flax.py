"""The training state that forwards extra arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

import optax_nlcg
from optax_nlcg.flax import TrainState


def loss_fn(params):
    return jnp.sum(jnp.array([1.0, 3.0]) * params["w"] ** 2)


def make(tx):
    return TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=tx)


def test_same_as_calling_the_optimizer():
    tx = optax_nlcg.nlcg(0.1)
    state = make(tx)
    params, opt_state = state.params, state.opt_state

    @jax.jit
    def train_step(state):
        value, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads, value=value)

    for _ in range(12):
        state = train_step(state)
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value=value)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-6)
    assert state.step == 12
    assert state.tx is tx


def test_optax_line_search_gets_all_it_needs():
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20))
    state = make(tx)
    value, grads = jax.value_and_grad(loss_fn)(state.params)
    stepped = state.apply_gradients(grads=grads, value=value, value_fn=loss_fn)
    assert loss_fn(stepped.params) < value


def test_optimizers_without_extra_arguments():
    state, plain = (
        cls.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=optax.adam(0.1))
        for cls in (TrainState, train_state.TrainState)
    )
    grads = jax.grad(loss_fn)(state.params)
    got = state.apply_gradients(grads=grads, value=1.0)
    want = plain.apply_gradients(grads=grads)
    np.testing.assert_array_equal(got.params["w"], want.params["w"])


def test_optax_multi_steps_gets_the_loss():
    tx = optax.MultiSteps(optax_nlcg.nlcg(0.1), 2)
    state = make(tx)
    first = state.apply_gradients(grads=state.params, value=1.0)
    np.testing.assert_array_equal(first.params["w"], state.params["w"])
    second = first.apply_gradients(grads=state.params, value=1.0)
    np.testing.assert_allclose(second.params["w"], 0.9 * state.params["w"], rtol=1e-6)
    assert second.tx is tx


def test_a_step_without_a_diagonal_estimates_none():
    """``None`` says so; without the argument the stage estimates one itself."""
    tx = optax_nlcg.nlcg(
        1.0,
        preconditioner=optax_nlcg.scale_by_hessian_diagonal(),
        line_search=optax_nlcg.scale_by_curvature_line_search(),
    )
    state = make(tx)
    grads = jax.grad(loss_fn)(state.params)
    for given, count in (({}, 1), ({"hessian_diagonal": None}, 0)):
        stepped = state.apply_gradients(grads=grads, value_fn=loss_fn, **given)
        assert optax.tree.get(stepped.opt_state, "num_refreshes") == count


def test_other_keywords_replace_fields():
    class WithStatistics(TrainState):
        batch_stats: float

    state = WithStatistics.create(
        apply_fn=None,
        params={"w": jnp.ones(2)},
        tx=optax_nlcg.nlcg(0.1),
        batch_stats=0.0,
    )
    state = state.apply_gradients(grads=state.params, value=1.0, batch_stats=7.0)
    assert state.batch_stats == 7.0


def test_complex_gradient_reaches_searches_as_jax_gives_it():
    def fun(params):
        return jnp.sum(jnp.abs(params["w"] - (1 + 2j)) ** 2)

    state = TrainState.create(
        apply_fn=None,
        params={"w": jnp.zeros(2, jnp.complex64)},
        tx=optax_nlcg.nonlinear_cg(),
    )
    value, grads = jax.value_and_grad(fun)(state.params)
    state = state.apply_gradients(
        grads=jax.tree.map(jnp.conj, grads), value=value, value_fn=fun
    )
    np.testing.assert_allclose(state.params["w"], np.full(2, 1 + 2j), rtol=1e-5)


def test_searches_get_no_gradient_that_overwrites():
    """As that of a layer in float8: Flax puts it in place of the parameter."""
    params = {
        "params": {"w": jnp.ones(2)},
        OVERWRITE_WITH_GRADIENT: {"scale": jnp.ones(1)},
    }
    state = TrainState.create(
        apply_fn=None, params=params, tx=optax_nlcg.nonlinear_cg()
    )
    value, grad = jax.value_and_grad(loss_fn)(params["params"])
    grads = {"params": grad, OVERWRITE_WITH_GRADIENT: {"scale": jnp.full(1, 7.0)}}
    state = state.apply_gradients(grads=grads, value=value, value_fn=loss_fn)
    assert loss_fn(state.params["params"]) < value
    assert state.params[OVERWRITE_WITH_GRADIENT]["scale"] == 7


def test_missing_loss_is_named():
    state = make(optax_nlcg.nlcg(0.1))
    with pytest.raises(ValueError, match=r"update\(\.\.\., value=loss\)"):
        state.apply_gradients(grads=state.params)


def test_what_is_not_given_does_not_reach_the_optimizer():
    """As ``None`` it would be taken for a loss."""
    state = make(optax.polyak_sgd())
    with pytest.raises(TypeError, match=r"missing .*'value'"):
        state.apply_gradients(grads=state.params)
