"""Faults of other nonlinear conjugate gradient codes, which this one must not have.

Each test names the fault. That all rules equal linear conjugate gradients, sign
included, is tested in test_direction.py and, with the search, in test_wolfe_search.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg
from optax_nlcg import minimize
from tests import common

RULES = list(optax_nlcg.BETA_RULES)


def trial_after(tx, x, fun, steps):
    """Parameters and state after some steps of a solver."""

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(fun)(x)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        return optax.apply_updates(x, updates), state

    state = tx.init(x)
    for _ in range(steps):
        x, state = step(x, state)
    return x, state


def test_no_success_by_small_changes(x64):
    # optimistix stops, and reports success, where its iterates change little: at
    # |g| = 7.6. A long flat valley makes steps small and gradients not.
    def fun(x):
        return 1e6 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    start = jnp.asarray([-1.2, 1.44])
    for cap in (20, 100, 400):
        result = minimize(fun, start, max_evaluations=cap)
        norm = np.max(np.abs(jax.grad(fun)(result.params)))
        assert bool(result.converged) == (norm <= 1e-6)


@pytest.mark.parametrize("exponent", [-40, 40])
def test_no_clamped_denominators(x64, exponent):
    # jaxopt bounds g'g from below by 1e-6 and so does steepest descent when |g| < 1e-3.
    # Worse conditions than this and rounding has a say in the number of steps.
    a = common.spd_matrix(np.geomspace(1, 1e2, 30), seed=0)
    b = jnp.asarray(np.random.default_rng(1).normal(size=30))
    scale = 2.0**exponent

    @jax.jit
    def steps(scale):
        return minimize(
            lambda x: scale * (x @ a @ x / 2 - b @ x),
            jnp.zeros(30),
            solver=optax_nlcg.nonlinear_cg(beta_rule="polak_ribiere"),
            tol=1e-8 * scale,
        ).num_steps

    assert int(steps(scale)) == int(steps(1.0)) <= 150


def test_not_steepest_descent_under_another_name(x64):
    # jaxopt's backtracking mode does not use its conjugate direction. With condition
    # number 1e4 steepest descent would need tens of thousands of steps.
    a = common.spd_matrix(np.geomspace(1, 1e4, 20), seed=2)
    result = minimize(
        lambda x: x @ a @ x / 2 - jnp.sum(x),
        jnp.zeros(20),
        solver=optax_nlcg.nonlinear_cg(
            beta_rule="polak_ribiere",
            line_search=optax.scale_by_zoom_linesearch(30, curv_rtol=0.1),
        ),
        max_steps=1000,
    )
    assert bool(result.converged)


@pytest.mark.parametrize("rule", ["fletcher_reeves", "liu_storey"])
def test_every_direction_descends(x64, rule):
    # jaxopt does not check. The loss never rises, whatever the rule makes of a sharp,
    # curved valley.
    def fun(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    result = minimize(
        fun,
        jnp.asarray([-1.2, 1.0, -0.5, 2.0]),
        solver=optax_nlcg.nonlinear_cg(beta_rule=rule),
        max_steps=60,
        record_history=True,
    )
    values = result.history.value[: int(result.num_steps) + 1]
    assert np.all(np.diff(values) <= 1e-6 * np.abs(values[:-1]))
    assert values[-1] < 1e-2 * values[0]


def test_nan_at_the_first_trial(x64):
    # jaxopt#465, #473: the first trial leaves the domain and the run ends in NaN.
    def fun(x):
        return jnp.sum(x) - jnp.sum(jnp.log(1 - x**2)) * 1e-3

    for solver in (optax_nlcg.nonlinear_cg(), optax_nlcg.limited_memory_cg()):
        # From 1e-5 inside the wall the first steps aim far outside.
        result = minimize(fun, jnp.asarray([1 - 1e-5, 0.5]), solver=solver)
        assert bool(result.converged)
        assert np.all(np.abs(result.params) < 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_zero_gives_no_nan(rule):
    # OptimKit.jl#43: where the search does not move, y = 0 and beta = 0 / 0.
    tx = optax_nlcg.nonlinear_cg(beta_rule=rule)
    x = jnp.asarray([1.0, -2.0])
    here = {"value": jnp.sum(x**2), "grad": 2 * x}

    @jax.jit
    def update(state, height):
        # With a height every trial is above the start.
        return tx.update(
            2 * x, state, x, **here, value_fn=lambda x: jnp.sum(x**2) + height
        )

    state = tx.init(x)
    _, state = update(state, 0.0)
    for _ in range(2):  # no step, so the same gradient again
        updates, state = update(state, 10.0)
        np.testing.assert_array_equal(updates, 0)
    updates, state = update(state, 0.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))
    assert np.isfinite(state[0].beta)
    assert np.any(updates != 0)


@pytest.mark.parametrize("rule", ["polak_ribiere", "hager_zhang"])
def test_complex_parameters(x64, rule):
    # optimistix's Polak-Ribiere raises; jaxopt#445.
    target = jnp.asarray([2 - 1j, 0.5j])

    def fun(z):
        return jnp.sum(jnp.cosh(jnp.abs(z - target)))

    result = minimize(
        fun, jnp.zeros(2, complex), solver=optax_nlcg.nonlinear_cg(beta_rule=rule)
    )
    assert bool(result.converged)
    np.testing.assert_allclose(result.params, target, atol=1e-6)


def test_zero_gradient_at_the_start():
    # 0 / 0 in every rule: converged, nothing done.
    x, state = trial_after(
        optax_nlcg.nonlinear_cg(), jnp.zeros(3), lambda x: jnp.sum(x**2), 3
    )
    np.testing.assert_array_equal(x, 0)
    assert all(not np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(state))
    result = minimize(lambda x: jnp.sum(x**2), jnp.zeros(3))
    assert bool(result.converged)
    assert int(result.num_steps) == 0
