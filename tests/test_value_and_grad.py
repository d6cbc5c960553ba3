"""Value and gradient from the state, for losses of any dtype."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg


def make_loss(dtype):
    def loss(x):
        return jnp.sum((x.astype(jnp.float32) - 1) ** 2 + 3).astype(dtype)

    return loss


@pytest.mark.parametrize("solver", [optax_nlcg.nonlinear_cg, optax.lbfgs])
@pytest.mark.parametrize("loss_dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loss_of_another_dtype_than_the_state(solver, loss_dtype, dtype):
    solver, loss = solver(), make_loss(loss_dtype)
    value_and_grad = optax_nlcg.value_and_grad_from_state(loss)

    @jax.jit
    def step(x, state):
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(
            grad, state, x, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(x, updates), state

    x = jnp.zeros(3, dtype)
    state = solver.init(x)
    for _ in range(5):
        x, state = step(x, state)
    assert x.dtype == dtype
    np.testing.assert_allclose(x.astype(jnp.float32), 1, atol=0.1)


def test_nothing_is_computed_where_the_state_knows():
    loss = make_loss("bfloat16")
    solver = optax_nlcg.nonlinear_cg()
    x = jnp.zeros(3)
    state = solver.init(x)
    value, grad = jax.value_and_grad(loss)(x)
    _, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=loss)

    another = optax_nlcg.value_and_grad_from_state(lambda x: 7 * loss(x))
    value, grad = another(x, state=state)
    np.testing.assert_array_equal(value, state[-1].value)
    np.testing.assert_array_equal(grad, state[-1].grad)
    value, _ = another(x, state=solver.init(x))
    np.testing.assert_array_equal(value, 7 * loss(x))


def test_arguments_of_the_loss_are_passed_on():
    def loss(x, scale, *, shift):
        return (scale * jnp.sum(x) + shift).astype(jnp.bfloat16)

    x = jnp.ones(2)
    state = optax_nlcg.nonlinear_cg().init(x)
    value_and_grad = optax_nlcg.value_and_grad_from_state(loss)
    value, grad = value_and_grad(x, 3.0, state=state, shift=1.0)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, 7)
    np.testing.assert_array_equal(grad, 3)


class Attention(NamedTuple):
    query: jax.Array
    value: jax.Array


@pytest.mark.parametrize(
    "x",
    [
        {"query": jnp.zeros(2), "value": jnp.ones(3), "grad": jnp.ones(())},
        [Attention(jnp.zeros(2), jnp.ones(3)), jnp.ones(())],
    ],
)
@pytest.mark.parametrize(
    "solver", [optax_nlcg.nonlinear_cg, lambda: optax_nlcg.limited_memory_cg(2)]
)
def test_parameters_with_the_names_of_fields(solver, x):
    """As in attention layers of Flax."""

    def loss(x):
        return sum(jnp.sum((leaf - 2) ** 4) for leaf in jax.tree.leaves(x))

    solver = solver()
    value_and_grad = optax_nlcg.value_and_grad_from_state(loss)
    value, grad = value_and_grad(x, state=solver.init(x))
    np.testing.assert_allclose(value, 36)
    updates, state = solver.update(
        grad, solver.init(x), x, value=value, grad=grad, value_fn=loss
    )
    x = optax.apply_updates(x, updates)
    got, want = value_and_grad(x, state=state), jax.value_and_grad(loss)(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


@pytest.mark.parametrize(
    "solver", [optax.sgd(0.1), optax.scale_by_backtracking_linesearch(10)]
)
def test_states_without_value_or_gradient_are_an_error(solver):
    x = jnp.ones(2)
    value_and_grad = optax_nlcg.value_and_grad_from_state(jnp.sum)
    with pytest.raises(ValueError, match="not found in the state"):
        value_and_grad(x, state=solver.init(x))


def test_a_loss_without_parameters_may_be_a_number():
    value_and_grad = optax_nlcg.value_and_grad_from_state(lambda x: 3.0)
    value, grad = value_and_grad({}, state=optax_nlcg.nonlinear_cg().init({}))
    assert (value, grad) == (3.0, {})
