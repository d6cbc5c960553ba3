"""The Hager-Zhang search: its conditions, its counts, and what must not break it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg
from optax_nlcg import SearchOutcome
from tests import common

DELTA, SIGMA = 0.1, 0.9

# Functions of one variable that descend at 0.
LINES = {
    "quartic": lambda a: (a - 1) ** 4 + 0.1 * a**2,
    "logarithm": lambda a: a - jnp.log(a + 1e-3),
    "barrier": lambda a: -jnp.log(1 - a) - 10 * a,
    "steep wall": lambda a: jnp.exp(20 * (a - 1)) - a,
    "wiggly": lambda a: 0.05 * a**2 - a + 0.3 * jnp.cos(9 * a),
    "far minimum": lambda a: -jnp.arctan(a / 1e4) + 1e-12 * a**2,
}


def search_along(phi, scale=1.0, tx=None):
    """One search from 0 with the update `scale`: the step taken and the state."""
    tx = tx or optax_nlcg.scale_by_hager_zhang_line_search()
    x = jnp.zeros(())
    value, grad = jax.value_and_grad(phi)(x)
    return tx.update(
        jnp.asarray(scale), tx.init(x), x, value=value, grad=grad, value_fn=phi
    )


@pytest.mark.parametrize("name", LINES)
def test_wolfe_conditions(x64, name):
    phi = LINES[name]
    slope = jax.vmap(jax.grad(phi))
    scales = jnp.asarray([1e-8, 1.0, 1e8])
    steps, state = jax.vmap(lambda scale: search_along(phi, scale))(scales)
    np.testing.assert_array_equal(state.outcome, SearchOutcome.WOLFE)
    assert np.all(steps > 0)
    start = jax.grad(phi)(0.0)
    assert np.all(jax.vmap(phi)(steps) - phi(0.0) <= DELTA * steps * start)
    assert np.all(slope(steps) >= SIGMA * start)
    np.testing.assert_allclose(state.slope, start * scales)
    assert np.all(state.num_evaluations <= 40)


def test_probe_makes_a_parabola_exact(x64):
    step, state = search_along(lambda a: 3 * (a - 7.0) ** 2 + 1)
    assert abs(step - 7) < 1e-9
    assert int(state.num_evaluations) == 3  # the probe's value, a value, a gradient


def test_curvature_sets_how_exact_the_search_is(x64):
    phi = LINES["logarithm"]
    tx = optax_nlcg.scale_by_hager_zhang_line_search(curvature=0.1)
    step, _ = search_along(phi, 100.0, tx)
    assert jax.grad(phi)(step) >= 0.1 * jax.grad(phi)(0.0)


def test_evaluations_are_counted_as_they_happen(x64):
    calls = []
    phi = common.counted(LINES["steep wall"], calls)
    _, state = search_along(phi, 100.0)
    jax.effects_barrier()
    # Less the value and the gradient at the start, which the caller computes.
    assert len(calls) - 2 == int(state.num_evaluations)
    assert int(state.num_evaluations) > 3


def test_gradient_of_the_loss_is_in_the_program_once():
    tx = optax_nlcg.scale_by_hager_zhang_line_search()

    def update(x):
        def fun(x):
            return jnp.sum(jax.lax.lgamma(x))

        state = tx.init(x)
        return tx.update(-x, state, x, value=0.0, grad=x, value_fn=fun)

    program = str(jax.make_jaxpr(update)(jnp.ones(3)))
    assert program.count(" digamma ") == 1  # the derivative of lgamma
    assert program.count(" lgamma ") == 2  # with the gradient, and in the probe


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_state_holds_value_and_gradient_at_the_new_parameters(dtype):
    def fun(x):
        return jnp.sum((x.astype(jnp.promote_types(dtype, "float32")) ** 2 - 1) ** 2)

    with jax.enable_x64(dtype == "float64"):
        tx = optax_nlcg.nonlinear_cg()
        x = jnp.linspace(0.2, 2, 5).astype(dtype)
        state = tx.init(x)

        @jax.jit
        def step(x, state):
            value, grad = optax.value_and_grad_from_state(fun)(x, state=state)
            updates, state = tx.update(
                grad, state, x, value=value, grad=grad, value_fn=fun
            )
            return optax.apply_updates(x, updates), state

        for _ in range(3):
            x, state = step(x, state)
            search = state[-1]
            value, grad = jax.jit(jax.value_and_grad(fun))(x)
            tolerance = 8 * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(search.value, value, rtol=tolerance)
            np.testing.assert_allclose(
                search.grad.astype(jnp.float32),
                grad.astype(jnp.float32),
                rtol=tolerance,
                atol=tolerance,
            )
            assert search.grad.dtype == x.dtype


def test_trials_that_are_not_finite_are_backed_out_of(x64):
    # Finite for a < 1 only, and the update points 1e6 times too far.
    def phi(a):
        return -jnp.log(1 - a) - 5 * a

    tx = optax_nlcg.scale_by_hager_zhang_line_search()
    state = tx.init(jnp.zeros(()))
    state = state._replace(count=3, step=jnp.ones(()), slope=-jnp.ones(()))
    value, grad = jax.value_and_grad(phi)(0.0)
    update, state = tx.update(
        jnp.asarray(1e6),
        state,
        jnp.zeros(()),
        value=jnp.asarray(value),
        grad=grad,
        value_fn=phi,
    )
    assert 0 < update < 1
    assert int(state.outcome) == SearchOutcome.WOLFE
    assert np.isfinite(state.value)


BAD_STARTS = {
    "ascent": (1.0, 1.0, 1.0, SearchOutcome.NO_DESCENT),
    "zero update": (1.0, 1.0, 0.0, SearchOutcome.NO_DESCENT),
    "nan value": (np.nan, 1.0, -1.0, SearchOutcome.NOT_FINITE),
    "nan gradient": (1.0, np.nan, -1.0, SearchOutcome.NOT_FINITE),
    "nan update": (1.0, 1.0, np.nan, SearchOutcome.NOT_FINITE),
    "infinite update": (1.0, 1.0, -np.inf, SearchOutcome.NOT_FINITE),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_bad_start_gives_no_step_and_harms_no_state(name):
    value, grad, update, outcome = BAD_STARTS[name]
    tx = optax_nlcg.scale_by_hager_zhang_line_search()
    x = jnp.ones(3)
    before = tx.init(x)
    updates, state = tx.update(
        jnp.full(3, update),
        before,
        x,
        value=jnp.asarray(value),
        grad=jnp.full(3, grad),
        value_fn=lambda x: jnp.sum(x**2),
    )
    np.testing.assert_array_equal(updates, 0)
    assert int(state.outcome) == outcome
    for field in ("count", "step", "slope", "value_scale", "approximate"):
        np.testing.assert_array_equal(getattr(state, field), getattr(before, field))
    assert state.num_skipped == (outcome == SearchOutcome.NOT_FINITE)
    # Whoever asks the state for value and gradient gets them, or is told to compute.
    known = np.isfinite(value) and np.isfinite(grad)
    assert float(state.value) == (value if known else np.inf)
    np.testing.assert_array_equal(state.grad, np.full(3, grad if known else 0.0))


@pytest.mark.parametrize("bad", ["value", "grad"])
def test_goes_on_after_a_step_that_was_not_finite(bad):
    tx = optax_nlcg.limited_memory_cg(3)

    def fun(x):
        return jnp.sum(jnp.cosh(x - jnp.arange(3.0)))

    x = jnp.zeros(3)
    state = tx.init(x)

    @jax.jit
    def step(x, state, spoil):
        known = optax_nlcg.value_and_grad_from_state(fun)(x, state=state)
        extra = dict(zip(("value", "grad"), known, strict=True))
        extra[bad] *= jnp.where(spoil, jnp.nan, 1)
        updates, state = tx.update(extra["grad"], state, x, value_fn=fun, **extra)
        return optax.apply_updates(x, updates), state

    for i in range(10):
        x, state = step(x, state, i in (0, 2, 3))
    assert optax.tree.get(state, "num_skipped") == 3
    np.testing.assert_allclose(x, jnp.arange(3.0), atol=1e-3)


def test_a_loss_that_is_nowhere_lower_gives_no_step():
    # The gradient lies: there is no descent along -x, so every trial is worse.
    fun = jax.custom_vjp(lambda x: jnp.abs(x))
    fun.defvjp(lambda x: (jnp.abs(x), x), lambda x, ct: (-ct,))
    tx = optax_nlcg.scale_by_hager_zhang_line_search(max_trials=8)
    updates, state = tx.update(
        jnp.asarray(1.0),
        tx.init(jnp.asarray(1.0)),
        jnp.asarray(1.0),
        value=jnp.asarray(1.0),
        grad=jnp.asarray(-1.0),
        value_fn=fun,
    )
    assert float(updates) == 0
    assert int(state.outcome) == SearchOutcome.NO_PROGRESS
    assert int(state.num_evaluations) == 2 * 8


def test_a_loss_of_minus_infinity_is_no_progress(x64):
    def phi(a):
        return jnp.where(a > 2, -jnp.inf, (a - 3) ** 2)

    tx = optax_nlcg.scale_by_hager_zhang_line_search(curvature=0.1)
    step, state = search_along(phi, 1.0, tx)
    assert int(state.outcome) == SearchOutcome.BEST_OF_TRIALS
    np.testing.assert_allclose(step, 2, rtol=1e-3)
    assert step <= 2
    np.testing.assert_allclose(state.value, (step - 3) ** 2)


@pytest.mark.parametrize(
    ("value_error", "outcome"),
    [
        (1e-2, SearchOutcome.APPROXIMATE_WOLFE),
        (2e-7, SearchOutcome.APPROXIMATE_WOLFE),  # times 10^5, which is the most
        (1e-8, SearchOutcome.BEST_OF_TRIALS),
    ],
)
def test_a_loss_rougher_than_assumed(x64, value_error, outcome):
    def value(a):  # has its minimum at 1, and a rise of 1 halfway
        return 100 + (a - 1) ** 2 / 2 + (a > 0.5)

    fun = jax.custom_vjp(value)
    fun.defvjp(lambda a: (value(a), a), lambda a, ct: (ct * (a - 1),))
    tx = optax_nlcg.scale_by_hager_zhang_line_search(
        curvature=0.1, value_error=value_error, max_trials=200
    )
    x = jnp.zeros(())
    state = tx.init(x)._replace(approximate=jnp.asarray(True))
    step, state = tx.update(
        jnp.ones(()), state, x, value=fun(x), grad=-jnp.ones(()), value_fn=fun
    )
    assert int(state.outcome) == outcome
    at_minimum = outcome == SearchOutcome.APPROXIMATE_WOLFE
    np.testing.assert_allclose(step, 1 if at_minimum else 0.5, rtol=0.1)


def test_scale_of_the_loss_is_a_mean_of_its_magnitude():
    tx, x = optax_nlcg.scale_by_hager_zhang_line_search(), jnp.ones(2)
    state = tx.init(x)
    for value in (-8.0, 2.0):
        _, state = tx.update(
            -x, state, x, value=value, grad=x, value_fn=lambda x: 10 * jnp.sum(x) - 40
        )
    assert int(state.count) == 2
    np.testing.assert_allclose(state.value_scale, (2 + 0.7 * 8) / 1.7, rtol=1e-6)


@pytest.mark.parametrize("missing", ["params", "value", "grad", "value_fn"])
def test_missing_arguments_are_named(missing):
    tx = optax_nlcg.scale_by_hager_zhang_line_search()
    x = jnp.ones(2)
    given = {"params": x, "value": 1.0, "grad": x, "value_fn": jnp.sum}
    given[missing] = None
    with pytest.raises(ValueError, match=rf"line_search needs `{missing}`"):
        tx.update(-x, tx.init(x), **given)


@pytest.mark.parametrize(
    "fun", [lambda x: x, lambda x: (jnp.sum(x), 1)], ids=["vector", "pair"]
)
def test_a_function_that_returns_more_than_the_loss_is_named(fun):
    tx, x = optax_nlcg.scale_by_hager_zhang_line_search(), jnp.ones(2)
    with pytest.raises(ValueError, match="`value_fn` to return the loss alone"):
        tx.update(-x, tx.init(x), x, value=1.0, grad=x, value_fn=fun)


@pytest.mark.parametrize(
    "solver", [optax_nlcg.nonlinear_cg, lambda: optax_nlcg.limited_memory_cg(2)]
)
def test_gradients_wider_than_the_parameters_keep_the_types_of_the_state(solver):
    tx, x = solver(), jnp.ones(3, jnp.bfloat16)

    def step(state, _):
        g = jnp.full(3, 0.5, jnp.float32)
        _, state = tx.update(
            g, state, x, value=jnp.float32(1), grad=g, value_fn=lambda x: jnp.sum(x**2)
        )
        return state, None

    assert jax.lax.scan(step, tx.init(x), None, 3)[0]


def test_unknown_extra_arguments_are_ignored():
    tx = optax_nlcg.scale_by_hager_zhang_line_search()
    x = jnp.ones(2)

    def fun(x):
        return jnp.sum(x**2)

    updates, _ = tx.update(
        -x, tx.init(x), x, value=fun(x), grad=2 * x, value_fn=fun, batch=3
    )
    np.testing.assert_allclose(updates, -1, rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sufficient_decrease", 0.5),
        ("sufficient_decrease", 0.0),
        ("curvature", 1.0),
        ("curvature", 0.05),
        ("value_error", -1.0),
        ("unit_step_tolerance", -0.1),
        ("max_trials", 0),
    ],
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        optax_nlcg.scale_by_hager_zhang_line_search(**{name: value})


def test_numbers_may_be_injected():
    """They are traced under `jit`, and cannot be compared with one another."""
    make = optax_nlcg.scale_by_hager_zhang_line_search
    numbers = {"sufficient_decrease": 0.05, "curvature": 0.5}

    def step(tx):
        @jax.jit
        def jitted(x):
            value, grad = jax.value_and_grad(rosenbrock)(x)
            return tx.update(
                -grad, tx.init(x), x, value=value, grad=grad, value_fn=rosenbrock
            )[0]

        return jitted(jnp.array([-1.2, 1.0]))

    want, got = step(make(**numbers)), step(optax.inject_hyperparams(make)(**numbers))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def trajectory(tx, fun, x, steps):
    def body(carry, _):
        x, state = carry
        value, grad = jax.value_and_grad(fun)(x)
        updates, state = tx.update(
            jax.tree.map(jnp.conj, grad), state, x, value=value, grad=grad, value_fn=fun
        )
        x = optax.apply_updates(x, updates)
        return (x, state), (x, value, state[-1].num_evaluations)

    return jax.lax.scan(body, (x, tx.init(x)), None, length=steps)[1]


@pytest.mark.parametrize(
    ("f_scale", "x_scale"), [(2.0**-60, 2.0**30), (2.0**60, 2.0**-30)]
)
def test_scales_of_loss_and_parameters_do_not_matter(x64, f_scale, x_scale):
    tx = optax_nlcg.nonlinear_cg()
    x0 = jnp.asarray([-1.2, 1.0, 0.5])
    want = trajectory(tx, rosenbrock, x0, 12)
    got = trajectory(tx, lambda x: f_scale * rosenbrock(x / x_scale), x_scale * x0, 12)
    np.testing.assert_allclose(got[0] / x_scale, want[0], rtol=1e-8)
    np.testing.assert_array_equal(got[2], want[2])


def test_a_lane_equals_the_single_run(x64):
    tx = optax_nlcg.nonlinear_cg()
    starts = jnp.asarray([[-1.2, 1.0], [3.0, -2.0], [0.9, 0.9], [1.0, 1.0]])
    xs, values, counts = jax.vmap(lambda x: trajectory(tx, rosenbrock, x, 8))(starts)
    for lane, start in enumerate(starts):
        x, value, count = trajectory(tx, rosenbrock, start, 8)
        np.testing.assert_allclose(xs[lane], x, rtol=1e-9)
        np.testing.assert_allclose(values[lane], value, rtol=1e-9, atol=1e-30)
        np.testing.assert_array_equal(counts[lane], count)


def test_complex_equals_stacked_real(x64):
    a = common.spd_matrix(np.geomspace(1, 20, 6), seed=0)

    def stacked(v):
        return v @ a @ v / 2 + jnp.sum(jnp.cosh(v) - v)

    def fun(z):
        return stacked(jnp.concatenate([z.real, z.imag]))

    tx = optax_nlcg.nonlinear_cg()
    start = jnp.asarray([1 + 2j, -1 + 0.5j, 0.3 - 1j])
    got = trajectory(tx, fun, start, 8)[0]
    want = trajectory(tx, stacked, jnp.concatenate([start.real, start.imag]), 8)[0]
    np.testing.assert_allclose(
        np.concatenate([got.real, got.imag], axis=1), want, rtol=1e-7, atol=1e-9
    )


DIRECTIONS = {
    "steepest descent": optax.identity,
    "adam": optax.scale_by_adam,
    "conjugate, preconditioned": lambda: optax_nlcg.scale_by_conjugate_direction(
        optax_nlcg.scale_by_diagonal_bfgs(), beta_rule="polak_ribiere"
    ),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_chains_with_any_direction(x64, name):
    tx = optax.chain(
        DIRECTIONS[name](),
        optax.scale_by_learning_rate(0.7),
        optax_nlcg.scale_by_hager_zhang_line_search(),
    )
    a = common.spd_matrix(np.geomspace(1, 10, 5), seed=1)
    _, values, _ = trajectory(tx, lambda x: x @ a @ x / 2, jnp.ones(5), 40)
    assert values[-1] < 1e-5 * values[0]
    assert np.all(np.diff(values) <= 1e-12)


@pytest.mark.parametrize(
    "rule", ["fletcher_reeves", "hestenes_stiefel", "dai_yuan", "hager_zhang"]
)
def test_k_distinct_eigenvalues_take_k_steps(x64, rule):
    # The probe makes steps on a quadratic exact, so that all rules are linear CG: a
    # rule of the wrong sign, or with norms for squared norms, would not get there.
    a = common.spd_matrix(np.repeat([1.0, 4.0, 9.0], 5), seed=3)
    b = jnp.asarray(np.random.default_rng(4).normal(size=15))
    tx = optax_nlcg.nonlinear_cg(beta_rule=rule)
    xs, _, _ = trajectory(tx, lambda x: x @ a @ x / 2 - b @ x + 5, jnp.zeros(15), 3)
    residual = np.linalg.norm(np.asarray(xs) @ a - b, axis=1)
    assert residual[2] < 1e-6 * np.linalg.norm(b)
    assert residual[1] > 1e-3 * np.linalg.norm(b)


def test_unit_steps_are_tried_first_once_they_have_been_right(x64):
    # Newton's method on a convex function: unit steps, and one trial for each.
    def fun(x):
        return jnp.sum(jnp.cosh(x) + x**2)

    newton = optax.stateless(lambda g, x: g / (jnp.cosh(x) + 2))
    search = functools.partial(optax_nlcg.scale_by_hager_zhang_line_search)
    counts = {}
    for tolerance in (0.0, 0.5):
        tx = optax.chain(newton, optax.scale(-1.0), search(0.1, 0.9, 1e-6, tolerance))
        _, _, counts[tolerance] = trajectory(tx, fun, jnp.asarray([3.0, -4.0]), 5)
    np.testing.assert_array_equal(counts[0.5][3:], 2)
    assert np.all(counts[0.0][:3] >= 3)
