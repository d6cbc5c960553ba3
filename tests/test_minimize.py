"""minimize: its promises at the returned point, its counts, and its derivatives."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import optax_nlcg
from optax_nlcg import Status, minimize
from tests import common

SOLVERS = {
    "limited memory": optax_nlcg.limited_memory_cg,
    "cg": optax_nlcg.nonlinear_cg,
    "cg zoom": lambda: optax_nlcg.nonlinear_cg(
        beta_rule="polak_ribiere", line_search=optax.scale_by_zoom_linesearch(30)
    ),
    "cg backtracking": lambda: optax_nlcg.nonlinear_cg(
        beta_rule="polak_ribiere",
        line_search=optax.scale_by_backtracking_linesearch(30),
    ),
    "fixed rate": lambda: optax_nlcg.nlcg(0.02, beta_rule=0.8, beta_bounds=None),
}


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def bowl(x):
    return jnp.sum(jnp.cosh(x - jnp.arange(x.size)) + 0.1 * x**2)


@pytest.mark.parametrize("name", SOLVERS)
def test_solves_and_counts_what_happens(x64, name):
    calls = []
    fun = common.counted(bowl, calls)
    result = jax.jit(lambda x: minimize(fun, x, solver=SOLVERS[name]()))(jnp.zeros(4))
    jax.effects_barrier()
    assert bool(result.converged), result.message
    assert np.max(np.abs(jax.grad(bowl)(result.params))) <= 1e-6
    want = scipy.optimize.minimize(bowl, np.zeros(4), jac=jax.grad(bowl), tol=1e-9)
    np.testing.assert_allclose(result.params, want.x, atol=1e-6)
    np.testing.assert_allclose(result.value, want.fun, rtol=1e-12)
    assert int(result.num_evaluations) == len(calls)


@pytest.mark.parametrize("name", ["limited memory", "cg"])
def test_rosenbrock_in_few_evaluations(x64, name):
    result = minimize(rosenbrock, jnp.asarray([-1.2, 1.0]), solver=SOLVERS[name]())
    assert bool(result.converged)
    np.testing.assert_allclose(result.params, 1, atol=1e-6)
    # SciPy's CG needs 159, CG_DESCENT 6.8 138.
    assert int(result.num_evaluations) < 138


ENDS = {
    "at the solution": (bowl, lambda: minimize_to(bowl), {}, Status.CONVERGED),
    "at the solution, at its limits": (
        bowl,
        lambda: minimize_to(bowl),
        {"max_steps": 0, "max_evaluations": 1},
        Status.CONVERGED,
    ),
    "exactly there": (
        lambda x: jnp.sum(x**2),
        lambda: jnp.zeros(3),
        {"tol": 0.0},
        Status.CONVERGED,
    ),
    "steps": (rosenbrock, lambda: jnp.zeros(3), {"max_steps": 3}, Status.MAX_STEPS),
    "no steps": (rosenbrock, lambda: jnp.zeros(3), {"max_steps": 0}, Status.MAX_STEPS),
    "evaluations": (
        rosenbrock,
        lambda: jnp.zeros(3),
        {"max_evaluations": 20},
        Status.MAX_EVALUATIONS,
    ),
    "precision": (bowl, lambda: jnp.zeros(3), {"tol": 1e-30}, Status.STALLED),
    "tolerance 0": (bowl, lambda: jnp.zeros(3), {"tol": 0.0}, Status.STALLED),
    "nan": (lambda x: jnp.sum(jnp.log(x)), lambda: -jnp.ones(2), {}, Status.NOT_FINITE),
    "nan gradient": (
        lambda x: jnp.sum(jnp.sqrt(x)),
        lambda: jnp.zeros(2),
        {},
        Status.NOT_FINITE,
    ),
    "infinite value": (
        lambda x: jnp.where(x[0] > 0, jnp.sum(x**2), jnp.inf),
        lambda: -jnp.ones(2),
        {},
        Status.NOT_FINITE,
    ),
    "no descent": (
        common.counted(lambda x: jnp.sum(x), []),
        lambda: jnp.ones(2),
        {"max_evaluations": 300},
        Status.MAX_EVALUATIONS,
    ),
}


def minimize_to(fun, tol=1e-9):
    return minimize(fun, jnp.zeros(3), tol=tol).params


@pytest.mark.parametrize("name", ENDS)
def test_says_how_it_ended(x64, name):
    fun, start, options, status = ENDS[name]
    result = minimize(fun, start(), **options)
    assert Status(int(result.status)) == status, result.message
    assert bool(result.converged) == (status == Status.CONVERGED)
    assert result.message.startswith("converged") == bool(result.converged)
    if status == Status.CONVERGED:
        assert int(result.num_steps) == 0
        assert int(result.num_evaluations) == 2
    if status == Status.STALLED:
        # The best that float64 can do, not just some point.
        assert float(result.grad_norm) < 1e-13


@pytest.mark.parametrize("solver", [None, optax_nlcg.nonlinear_cg()])
def test_stalls_soon_where_float32_ends(solver):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 20)), rng.normal(size=200)
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)

    def residual(x):
        return 0.5 * jnp.sum((a @ x - b) ** 2)

    result = minimize(residual, jnp.zeros(20), solver=solver)  # 1e-6 is out of reach
    assert Status(int(result.status)) == Status.STALLED
    assert result.num_evaluations < 3000
    exact = np.linalg.lstsq(np.asarray(a), np.asarray(b))[0]
    np.testing.assert_allclose(result.params, exact, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_success_is_never_claimed_falsely(x64, seed):
    # Hard and easy, from far and near, with a cap that many do not reach in time.
    rng = np.random.default_rng(seed)
    a = jnp.asarray(common.spd_matrix(np.geomspace(1, 10.0 ** (2 * seed), 8), seed))

    def fun(x):
        return x @ a @ x + jnp.sum(jnp.sin(3 * x)) + 0.1 * jnp.sum(x**4)

    starts = jnp.asarray(rng.normal(size=(16, 8)) * 10 ** rng.uniform(-2, 3, (16, 1)))
    results = jax.jit(
        jax.vmap(functools.partial(minimize, fun, max_evaluations=60 + 40 * seed))
    )(starts)
    grads = jax.vmap(jax.grad(fun))(results.params)
    norms = np.max(np.abs(grads), axis=1)
    np.testing.assert_array_equal(results.converged, norms <= 1e-6)
    np.testing.assert_allclose(results.grad_norm, norms, rtol=1e-4, atol=1e-12)
    values = jax.vmap(fun)(results.params)
    np.testing.assert_allclose(results.value, values, rtol=1e-9)
    assert np.all(values <= jax.vmap(fun)(starts))


def test_returns_the_best_point_seen(x64):
    # A rate beyond stability: the loss falls at first, then blows up.
    def fun(x):
        return x[0] ** 2 / 2 + 1000 * x[1] ** 2 / 2

    seen = []
    result = minimize(
        fun,
        jnp.asarray([10.0, 1e-12]),
        solver=optax.sgd(0.01),
        max_steps=60,
        callback=lambda progress: seen.append(float(progress.value)),
    )
    jax.effects_barrier()
    assert not bool(result.converged)
    assert seen[-1] > 1e3 * min(seen)
    np.testing.assert_allclose(result.value, min(seen))
    np.testing.assert_allclose(result.value, fun(result.params))
    np.testing.assert_allclose(
        result.grad_norm, np.max(np.abs(jax.grad(fun)(result.params)))
    )


def test_a_search_that_stands_still_forgets_and_goes_on(x64):
    """After two steps this one is given no direction any more."""

    def update(g, count, params=None):
        return -0.3 * g * (count < 2), count + 1

    tires = optax.GradientTransformation(lambda params: jnp.zeros(()), update)
    solver = optax.chain(tires, optax.scale_by_backtracking_linesearch(9))
    result = minimize(lambda x: jnp.sum(x**2), jnp.ones(2), solver=solver)
    assert bool(result.converged), result.message


@pytest.mark.parametrize(
    "solver",
    [
        optax.adam(optax.warmup_constant_schedule(0.0, 1e-2, 10)),
        optax.MultiSteps(optax.sgd(0.1), 40).gradient_transformation(),
    ],
)
def test_steps_of_no_length_are_no_stall_without_a_search(solver):
    result = minimize(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(2), solver=solver)
    assert bool(result.converged), result.message


@pytest.mark.parametrize(
    "last", [optax.scale(0.5), optax.keep_params_nonnegative(), optax.identity()]
)
@pytest.mark.parametrize("name", ["limited memory", "cg zoom"])
def test_what_follows_a_search_is_looked_at(x64, name, last):
    """It reports what is at the returned point, not where the search ended."""
    calls = []
    fun = common.counted(lambda x: jnp.sum((x + 1) ** 2), calls)
    solver = optax.chain(SOLVERS[name](), last)
    result = minimize(fun, jnp.ones(2), solver=solver, max_steps=20)
    jax.effects_barrier()
    value, grad = jax.value_and_grad(lambda x: jnp.sum((x + 1) ** 2))(result.params)
    np.testing.assert_allclose(result.value, value, atol=1e-12)
    np.testing.assert_allclose(result.grad_norm, jnp.max(jnp.abs(grad)), atol=1e-12)
    assert bool(result.converged) == (result.grad_norm <= 1e-6)
    assert int(result.num_evaluations) == len(calls)
    if last.update is optax.keep_params_nonnegative().update:
        assert not result.converged


def test_a_limit_beyond_what_can_be_counted_is_none():
    result = minimize(bowl, jnp.zeros(3), tol=1e-3, max_evaluations=10**12)
    assert bool(result.converged)
    result = minimize(bowl, jnp.zeros(3), tol=1e-3, max_steps=10**12)
    assert bool(result.converged)


def test_a_smaller_gradient_is_progress_and_no_change_is_a_stall(x64):
    """Values that the precision does not tell apart, for more than a thousand steps."""

    def flat(gradient):
        fun = jax.custom_vjp(lambda x: jnp.asarray(1e20))
        fun.defvjp(lambda x: (fun(x), x), lambda x, ct: (ct * gradient(x),))
        return minimize(fun, jnp.ones(1), solver=optax.sgd(1e-2))

    falling, constant = flat(lambda x: x), flat(jnp.ones_like)
    assert bool(falling.converged)
    assert Status(int(constant.status)) == Status.STALLED
    assert int(falling.num_steps) > int(constant.num_steps)


@pytest.mark.parametrize("limit", [{"max_steps": 3}, {"max_evaluations": 7}])
def test_history_is_complete_where_a_limit_ends_it(x64, limit):
    result = minimize(
        rosenbrock,
        jnp.zeros(3),
        solver=optax.sgd(1e-4),
        record_history=True,
        **limit,
    )
    assert int(result.num_steps) == 3
    values = result.history.value[:4]
    assert values.shape == (4,)
    assert np.all(np.isfinite(values))


def test_a_step_to_an_infinite_value_is_no_success(x64):
    """Where the loss is a constant infinity its gradient is zero."""

    def fun(x):
        return jnp.where(x[0] > 0, jnp.sum((x - 1) ** 2), jnp.inf)

    result = minimize(fun, jnp.full(2, 3.0), solver=optax.sgd(2.0))
    assert Status(int(result.status)) == Status.NOT_FINITE
    assert not bool(result.converged)
    np.testing.assert_array_equal(result.params, jnp.full(2, 3.0))


def test_a_loss_that_rises_for_long_is_not_a_stall(x64):
    # Adam with a large rate: hundreds of steps above its best.
    rate = optax.piecewise_constant_schedule(0.5, {800: 1e-3})
    result = minimize(
        lambda x: jnp.sum(jnp.abs(x) ** 1.5),
        jnp.full(3, 1e-4),
        solver=optax.adam(rate, b2=0.9),
        max_steps=900,
    )
    assert int(result.num_steps) == 900 or bool(result.converged)


def test_lanes_are_independent(x64):
    starts = jnp.asarray([[-1.2, 1.0], [1.0, 1.0], [5.0, -3.0], [np.nan, 1.0]])
    run = functools.partial(minimize, rosenbrock, max_evaluations=200)
    lanes = jax.jit(jax.vmap(run))(starts)
    single = jax.jit(run)
    for lane, start in enumerate(starts):
        want = single(start)
        got = jax.tree.map(operator.itemgetter(lane), lanes)
        assert int(got.num_steps) == int(want.num_steps)
        assert int(got.num_evaluations) == int(want.num_evaluations)
        assert int(got.status) == int(want.status)
        np.testing.assert_allclose(got.params, want.params, rtol=1e-8)
    np.testing.assert_array_equal(lanes.num_evaluations[jnp.asarray([1, 3])], 2)
    assert lanes.num_evaluations[0] != lanes.num_evaluations[2]


@pytest.mark.parametrize("name", ["limited memory", "cg"])
def test_nothing_to_minimize_over(name):
    result = minimize(lambda params: 2.0, {}, solver=SOLVERS[name]())
    assert bool(result.converged)
    assert (result.params, float(result.value)) == ({}, 2.0)


def test_trees_and_awkward_names():
    # Field names of Optax's states as keys, a scalar, an empty tree.
    params = {"value": jnp.zeros(3), "grad": (jnp.zeros(()),), "none": None}

    def fun(p):
        return jnp.sum((p["value"] - 1) ** 2) + (p["grad"][0] + 2) ** 2

    for name in ("limited memory", "cg zoom"):
        result = minimize(fun, params, solver=SOLVERS[name](), tol=1e-3)
        assert bool(result.converged)
        assert jax.tree.structure(result.params) == jax.tree.structure(params)
        np.testing.assert_allclose(result.params["value"], 1, atol=1e-3)
        np.testing.assert_allclose(result.params["grad"][0], -2, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tol"), [("float32", 1e-4), ("bfloat16", 0.3)])
def test_low_precision(dtype, tol):
    def fun(x):
        x = x.astype(jnp.float32)
        return jnp.sum(jnp.cosh(x - 1) + 0.1 * x**2) + 1000

    result = minimize(fun, jnp.linspace(-2, 2, 6).astype(dtype), tol=tol)
    assert result.params.dtype == dtype
    assert result.value.dtype == jnp.float32
    assert bool(result.converged), result.message


def test_loss_in_low_precision():
    # Near the minimum the loss, rounded to 8, tells nothing: the slopes have to.
    def fun(x):
        return (jnp.sum(jnp.cosh(x - 1) + 0.1 * x**2) + 1000).astype(jnp.bfloat16)

    result = minimize(fun, jnp.linspace(-2, 2, 6), tol=0.3)
    assert bool(result.converged), result.message


def test_float32_reaches_gradients_below_the_square_root_of_its_precision():
    # The loss is 1000 and its rounding 6e-5: by values alone nothing below |g| ~ 1e-2
    # can be told from the minimum.
    def fun(x):
        return jnp.sum(jnp.cosh(x - 1)) + 1000

    result = minimize(fun, jnp.linspace(-2, 2, 6), tol=1e-4)
    assert bool(result.converged), result.message


@pytest.mark.parametrize("solver", [None, optax_nlcg.nonlinear_cg()])
@pytest.mark.parametrize("start", [0.5, [1.0, 2.0], {"a": 1.0, "b": [0.0]}])
def test_python_numbers_to_start_from(x64, solver, start):
    def fun(x):
        return sum((leaf - 3.0) ** 2 for leaf in jax.tree.leaves(x))

    result = optax_nlcg.minimize(fun, start, solver=solver, tol=1e-10)
    assert result.converged
    assert result.value.dtype == np.float64
    for leaf in jax.tree.leaves(result.params):
        assert leaf.dtype == np.float64
        np.testing.assert_allclose(leaf, 3, atol=1e-10)


def test_complex_parameters(x64):
    target = jnp.asarray([1 + 2j, -3 + 0.5j])

    def fun(p):
        return jnp.sum(jnp.abs(p["z"] - target) ** 4) + (p["r"] - 1) ** 2

    start = {"z": jnp.zeros(2, complex), "r": jnp.zeros(())}
    for name in ("limited memory", "cg"):
        result = minimize(fun, start, solver=SOLVERS[name](), tol=1e-9)
        assert bool(result.converged)
        assert result.params["z"].dtype == complex
        np.testing.assert_allclose(result.params["z"], target, atol=1e-2)


def test_history_and_callback(x64):
    seen = []
    result = minimize(
        rosenbrock, jnp.zeros(3), callback=seen.append, record_history=True
    )
    jax.effects_barrier()
    steps = int(result.num_steps)
    assert [int(progress.num_steps) for progress in seen] == list(range(1, steps + 1))
    history = result.history
    assert np.all(np.isfinite(history.value[: steps + 1]))
    assert np.all(np.isnan(history.value[steps + 1 :]))
    assert float(history.value[0]) == float(rosenbrock(jnp.zeros(3)))
    # The callback's thread knows nothing of `enable_x64` here and is told in float32.
    np.testing.assert_allclose(
        history.value[1 : steps + 1], [progress.value for progress in seen], rtol=1e-6
    )
    assert float(history.grad_norm[steps]) == float(result.grad_norm)
    assert int(history.num_evaluations[steps]) == int(result.num_evaluations)


def test_aux_is_that_of_the_solution(x64):
    def fun(x, shift):
        return jnp.sum((x - shift) ** 2), {"twice": 2 * x, "name": jnp.asarray(3)}

    plain = minimize(lambda x, s: fun(x, s)[0], jnp.zeros(2), (1.5,))
    result = minimize(fun, jnp.zeros(2), (1.5,), has_aux=True)
    np.testing.assert_array_equal(result.aux["twice"], 2 * result.params)
    assert int(result.aux["name"]) == 3
    assert int(result.num_evaluations) == int(plain.num_evaluations) + 1
    assert plain.aux is None


@pytest.mark.parametrize("name", ["limited memory", "cg"])
def test_scales_do_not_matter(x64, name):
    start = jnp.asarray([-1.2, 1.0, 0.3])

    def scaled(x):
        return 2.0**-50 * rosenbrock(x * 2.0**20)

    want = minimize(rosenbrock, start, solver=SOLVERS[name](), tol=2.0**-20)
    got = minimize(
        scaled, start * 2.0**-20, solver=SOLVERS[name](), tol=2.0 ** -(20 + 30)
    )
    assert bool(got.converged)
    assert int(got.num_evaluations) == int(want.num_evaluations)
    np.testing.assert_allclose(got.params * 2.0**20, want.params, rtol=1e-7)


def ridge(x, a, b, penalty):
    return jnp.sum((a @ x - b) ** 2) / 2 + penalty * jnp.sum(x**2) / 2


def ridge_solution(a, b, penalty):
    return jnp.linalg.solve(a.T @ a + penalty * jnp.eye(a.shape[1]), a.T @ b)


def test_derivatives_of_the_solution(x64):
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=6))

    def solve(*args):
        return minimize(ridge, jnp.zeros(3), args, tol=1e-10).params

    args = (a, b, jnp.asarray(0.5))
    backward = jax.jit(jax.jacrev(solve, argnums=(0, 1, 2)))(*args)
    want = jax.jacrev(ridge_solution, argnums=(0, 1, 2))(*args)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-7, atol=1e-9),
        backward,
        want,
    )
    tangents = jax.tree.map(jnp.ones_like, args)
    _, forward = jax.jvp(solve, args, tangents)
    _, want = jax.jvp(ridge_solution, args, tangents)
    np.testing.assert_allclose(forward, want, rtol=1e-7)


def test_derivatives_by_closure_of_value_and_aux_under_vmap(x64):
    # min_x sum cosh(x) - t x is at sinh(x) = t; its value has derivative -n x(t).
    def outputs(t):
        def fun(x):
            return (jnp.sum(jnp.cosh(x) - t * x), x[0] ** 2)

        result = minimize(fun, jnp.zeros(2), has_aux=True, tol=1e-10)
        return result.params[0], result.value, result.aux

    t = jnp.asarray([0.3, 1.7])
    x = np.arcsinh(t)
    dx = 1 / np.sqrt(1 + t**2)
    for mode in (jax.jacrev, jax.jacfwd):
        got = jax.vmap(mode(outputs))(t)
        np.testing.assert_allclose(got[0], dx, rtol=1e-8)
        np.testing.assert_allclose(got[1], -2 * x, rtol=1e-8)
        np.testing.assert_allclose(got[2], 2 * x * dx, rtol=1e-8)


def test_derivatives_with_complex_parameters(x64):
    def real_part(t):
        def fun(z):
            return jnp.sum(jnp.abs(z - jax.lax.complex(t, t**2)) ** 2)

        z = minimize(fun, jnp.zeros(1, complex), tol=1e-10).params
        return jnp.real(z[0]) + 3 * jnp.imag(z[0])

    np.testing.assert_allclose(jax.grad(real_part)(0.7), 1 + 3 * 1.4, rtol=1e-8)


def test_gradient_where_an_argument_does_not_act_on_every_parameter(x64):
    def fun(p, theta):
        return (p["a"] - theta**2) ** 2 + (p["b"] - 3) ** 4 + (p["b"] - p["a"]) ** 2

    def solution(theta):
        start = {"a": jnp.zeros(()), "b": jnp.zeros(())}
        return minimize(fun, start, args=(theta,), tol=1e-10).params

    theta = 1.3
    for leaf in "ab":
        gradient = jax.grad(lambda theta, leaf=leaf: solution(theta)[leaf])(theta)
        tangent = jax.jvp(solution, (theta,), (1.0,))[1][leaf]
        above, below = solution(theta + 1e-5)[leaf], solution(theta - 1e-5)[leaf]
        np.testing.assert_allclose(gradient, (above - below) / 2e-5, rtol=1e-5)
        np.testing.assert_allclose(tangent, gradient, rtol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_derivatives_where_the_loss_has_another_dtype(x64, dtype):
    """Than the one that the solver has chosen for the parameters: float32."""

    def solve(theta):
        def fun(x):
            return jnp.sum((x - theta) ** 2).astype(dtype)

        result = minimize(fun, jnp.zeros(2, jnp.float32), tol=1e-2)
        return result.params, result.value

    dx, dvalue = jax.jacrev(solve)(jnp.float32(1.0))
    np.testing.assert_allclose(dx, 1, rtol=1e-2)
    np.testing.assert_allclose(dvalue, 0, atol=1e-2)


def test_derivatives_with_parameters_of_several_dtypes(x64):
    # At a = b = t, b' = 1 whatever a's dtype is.
    def solve(theta):
        def fun(p):
            coupled = (p["a"].astype(float) - p["b"]) ** 2
            return jnp.sum((p["b"] - theta) ** 2 + coupled)

        start = {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(2)}
        return minimize(fun, start, tol=1e-5).params

    derivative = jax.jacrev(solve)(jnp.asarray(0.7))
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 1, rtol=1e-4), derivative)


@pytest.mark.parametrize(
    ("scale", "cotangent"),
    [(1e17, 1.0), (1e-16, 1.0), (1e-18, 1.0), (1.0, 1e20), (1.0, 1e-25)],
)
def test_derivatives_whose_squares_do_not_fit(scale, cotangent):
    def solve(t):
        def fun(x):
            return scale * jnp.sum((x - t) ** 2 + 0.1 * jnp.cosh(x))

        return minimize(fun, jnp.full(2, 0.66), tol=1e-4 * scale).params.sum()

    x, t = solve(0.7) / 2, 0.7
    want = 2 * 2 / (2 + 0.1 * jnp.cosh(x))
    np.testing.assert_allclose(jax.jacfwd(solve)(t), want, rtol=1e-4)
    got = jax.grad(lambda t: cotangent * solve(t))(t)
    np.testing.assert_allclose(got / cotangent, want, rtol=1e-4)


def test_derivatives_that_take_thousands_of_steps(x64):
    """A chain of springs: what moves one end takes a step for each to the other."""
    places = 1 - jnp.arange(1, 3001) / 3001

    def chain(x, t):
        ends = (x[0] - t) ** 2 + x[-1] ** 2
        return (jnp.sum(jnp.diff(x) ** 2) + ends) / 2

    def solve(t):
        return minimize(chain, jax.lax.stop_gradient(t * places), (t,)).params

    np.testing.assert_allclose(jax.jit(jax.jacfwd(solve))(1.0), places, atol=1e-6)


def test_a_derivative_that_is_not_found_is_nan(x64):
    """A Hessian that is singular along what the argument pulls at."""

    def solve(t):
        return minimize(lambda x: (x[0] - t) ** 2 + 0 * x[1], jnp.zeros(2)).params

    assert jnp.isnan(jax.grad(lambda t: solve(t).sum())(0.3))
    np.testing.assert_allclose(jax.grad(lambda t: solve(t)[0])(0.3), 1.0)


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_derivatives_of_a_loss_with_its_own_backward_pass(x64, derivative):
    @jax.custom_vjp
    def fun(x, t):
        return jnp.sum(jnp.cosh(x - t))

    def forward(x, t):
        return jnp.sum(jnp.cosh(x - t)), (x, t)

    def backward(residuals, ct):
        x, t = residuals
        slope = ct * jnp.sinh(x - t)
        return slope, -jnp.sum(slope)

    fun.defvjp(forward, backward)

    def solve(t):
        result = minimize(fun, jnp.zeros(2), (t,))
        return result.params.sum() + result.value

    np.testing.assert_allclose(derivative(solve)(0.5), 2.0, atol=1e-5)


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_the_way_has_no_derivative(x64, derivative):
    """A tolerance or a rate made of an argument changes the way, not the minimum."""

    def solution(theta, use_its_own):
        own = theta if use_its_own else 0.3
        solver = optax.chain(optax_nlcg.nonlinear_cg(), optax.scale(1 + 0 * own))
        return minimize(
            lambda x, t: jnp.sum((x - 1) ** 2) + t * jnp.sum(x**4),
            jnp.zeros(3),
            (theta,),
            tol=1e-9 * (1 + own),
            solver=solver,
        ).params

    got, want = (derivative(solution)(0.3, own) for own in (True, False))
    np.testing.assert_allclose(got, want, rtol=1e-7)
    jitted = jax.jit(derivative(lambda theta: solution(theta, True)))
    np.testing.assert_allclose(jitted(0.3), want, rtol=1e-7)


def test_the_start_has_no_derivative(x64):
    gradient = jax.grad(lambda x0: jnp.sum(minimize(bowl, x0).params))(jnp.ones(3))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: minimize(bowl, jnp.arange(3)), TypeError, "floating point"),
        (
            lambda: minimize(bowl, {"w": 1.0, "activation": jnp.tanh}),
            TypeError,
            r"`params\['activation'\]` must be an array or a number",
        ),
        (lambda: minimize(lambda x: x, jnp.ones(3)), ValueError, "real scalar"),
        (
            lambda: minimize(lambda x: (x[0], 1), jnp.ones(3)),
            ValueError,
            "has_aux=True",
        ),
        (lambda: minimize(bowl, jnp.ones(3), has_aux=True), ValueError, "a pair"),
        (
            lambda: minimize(lambda x: 1j * x[0], jnp.ones(3)),
            ValueError,
            "real scalar",
        ),
        (lambda: minimize(bowl, jnp.ones(3), tol=-1.0), ValueError, "tol"),
        (
            lambda: minimize(bowl, jnp.ones(3), max_evaluations=0),
            ValueError,
            "max_evaluations",
        ),
        (
            lambda: minimize(bowl, jnp.ones(3), solver=optax.adam),
            TypeError,
            "solver",
        ),
        (
            lambda: jax.jit(
                lambda n: minimize(bowl, jnp.ones(3), max_steps=n, record_history=True)
            )(3),
            ValueError,
            "`record_history=True` .* `max_steps`",
        ),
        (
            lambda: optax_nlcg.limited_memory_cg(0),
            ValueError,
            "memory_size",
        ),
        (
            lambda: optax_nlcg.nonlinear_cg(line_search=optax.sgd),
            TypeError,
            "line_search",
        ),
    ],
)
def test_errors_say_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
