"""Conjugacy: linear CG, finite termination, invariances, restarts, guards."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_nlcg
from optax_nlcg.beta import BETA_RULES, InnerProducts, get_beta_rule
from tests import common

RULES = list(BETA_RULES)


@pytest.mark.parametrize("rule", RULES)
def test_equals_preconditioned_linear_cg(x64, rule):
    n = 20  # and conditions in which rounding does not grow to be seen
    a = common.spd_matrix(np.geomspace(1, 10, n), seed=1)
    p = common.spd_matrix(np.geomspace(0.2, 2, n), seed=2)
    b, x0 = np.random.default_rng(3).normal(size=(2, n))
    want = common.linear_cg(a, b, x0, p, n // 2)
    tx = optax_nlcg.scale_by_conjugate_direction(
        common.matrix_preconditioner(jnp.asarray(p)), beta_rule=rule
    )
    got, _ = common.exact_steps(tx, a, b, x0, n // 2)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("rule", RULES)
def test_k_distinct_eigenvalues_take_k_steps(x64, rule):
    k, n = 4, 24
    a = common.spd_matrix(np.repeat([1.0, 3.0, 10.0, 25.0], n // k), seed=4)
    b, x0 = np.random.default_rng(5).normal(size=(2, n))
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=rule)
    xs, _ = common.exact_steps(tx, a, b, x0, k)
    residuals = np.linalg.norm(xs @ a - b, axis=1)
    assert residuals[k] < 1e-12 * residuals[0]
    assert residuals[k - 1] > 1e-6 * residuals[0]


@pytest.mark.parametrize("rule", RULES)
def test_inverse_hessian_takes_one_step(x64, rule):
    a = common.spd_matrix(np.geomspace(1, 1e4, 12), seed=6)
    b, x0 = np.random.default_rng(7).normal(size=(2, 12))
    p = common.matrix_preconditioner(jnp.asarray(np.linalg.inv(a)))
    tx = optax_nlcg.scale_by_conjugate_direction(p, beta_rule=rule)
    xs, _ = common.exact_steps(tx, a, b, x0, 1)
    residuals = np.linalg.norm(xs @ a - b, axis=1)
    assert residuals[1] < 1e-9 * residuals[0]


@pytest.mark.parametrize("rule", RULES)
def test_preconditioning_is_a_change_of_variables(x64, rule):
    # P = S S' in x is P = I in u, where x = S u; here beyond quadratics.
    n = 8
    s = jnp.asarray(common.spd_matrix(np.geomspace(0.5, 3, n), seed=8))
    x = jnp.asarray(np.random.default_rng(9).normal(size=n))

    def fun(x):
        return jnp.sum(jnp.cosh(0.3 * x)) + 0.1 * jnp.sum(x[1:] * x[:-1])

    in_x = optax.chain(
        optax_nlcg.scale_by_conjugate_direction(
            common.matrix_preconditioner(s @ s.T), beta_rule=rule
        ),
        optax.scale_by_learning_rate(0.05),
    )
    in_u = optax.chain(
        optax_nlcg.scale_by_conjugate_direction(beta_rule=rule),
        optax.scale_by_learning_rate(0.05),
    )
    x_end, _, losses = common.descend(in_x, fun, x, 8)
    u_end, _, _ = common.descend(in_u, lambda u: fun(s @ u), jnp.linalg.solve(s, x), 8)
    np.testing.assert_allclose(s @ u_end, x_end, rtol=1e-8)
    assert np.all(np.isfinite(losses))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_scale_of_the_loss_does_not_matter(rule, factor):
    rng = np.random.default_rng(10)
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=rule)
    gradients = jnp.asarray(rng.normal(size=(6, 30)), jnp.float32)
    state = scaled_state = tx.init(gradients[0])
    for g in gradients:
        p, state = tx.update(g, state)
        scaled, scaled_state = tx.update(factor * g, scaled_state)
        np.testing.assert_allclose(scaled, factor * p, rtol=1e-5, atol=factor * 1e-6)
    assert state.beta.dtype == jnp.float32


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    rule=st.sampled_from(RULES),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    nesterov=st.booleans(),
)
def test_always_descends(seed, rule, scale, nesterov):
    # Gradients with no relation to each other, as no line search would allow.
    rng = np.random.default_rng(seed)
    p = jnp.asarray(rng.uniform(0.1, 10, size=5), jnp.float32)
    tx = optax_nlcg.scale_by_conjugate_direction(
        optax.stateless(lambda g, params: p * g), beta_rule=rule, nesterov=nesterov
    )
    state = tx.init(p)
    for g in jnp.asarray(scale * rng.normal(size=(8, 5)), jnp.float32):
        step, state = tx.update(g, state)
        assert float(jnp.vdot(g, step)) > 0
        slope = float(jnp.vdot(g, state.direction))
        assert slope > 0
        np.testing.assert_allclose(state.slope, -slope, rtol=1e-3)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), theta=st.sampled_from([0.5, 1.0, 2.0]))
def test_hager_zhang_descends_enough_whatever_the_step(seed, theta):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.1, 10, size=5)
    rule = BETA_RULES["hager_zhang"]
    with jax.enable_x64(True):
        tx = optax_nlcg.scale_by_conjugate_direction(
            optax.stateless(lambda g, params: jnp.asarray(p) * g),
            beta_rule=rule._replace(
                compute=lambda q: optax_nlcg.beta.hager_zhang(q, theta=theta)
            ),
        )
        state = tx.init(jnp.asarray(p))
        for g in rng.normal(size=(8, 5)):
            _, state = tx.update(jnp.asarray(g), state)
            bound = -(1 - 1 / (4 * theta)) * (g @ (p * g))
            assert float(state.slope) <= bound * (1 - 1e-9)


def test_hager_zhang_descends_enough_also_while_the_preconditioner_shrinks(x64):
    """From one application in a step to the other: y'Py alone would be too small."""

    def update(g, count, params=None):
        return 0.1**count * g, count + 1

    shrinking = optax.GradientTransformation(lambda params: jnp.zeros(()), update)
    tx = optax_nlcg.scale_by_conjugate_direction(shrinking, beta_rule="hager_zhang")
    state = tx.init(jnp.zeros(3))
    for g in np.random.default_rng(17).normal(size=(40, 3)):
        _, state = tx.update(jnp.asarray(g), state)
        assert float(state.slope) <= -0.75 * float(state.gz) * (1 - 1e-9)
        state = state._replace(preconditioner=jnp.zeros(()))


@pytest.mark.parametrize("rule", RULES)
def test_memory_in_copies_of_the_parameters(rule):
    """One, and a second for rules with y'z in them."""
    state = optax_nlcg.scale_by_conjugate_direction(beta_rule=rule).init(jnp.zeros(99))
    copies = 1 if rule in ("fletcher_reeves", "dai_yuan", "conjugate_descent") else 2
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) // 99 == copies


def test_length_in_the_metric_of_the_preconditioner(x64):
    rng = np.random.default_rng(11)
    p = common.spd_matrix(np.geomspace(0.1, 5, 6), seed=12)
    tx = optax_nlcg.scale_by_conjugate_direction(
        common.matrix_preconditioner(jnp.asarray(p)), beta_rule="hager_zhang"
    )
    state = tx.init(jnp.zeros(6))
    for g in rng.normal(size=(10, 6)):
        d, state = tx.update(jnp.asarray(g), state)
        np.testing.assert_allclose(state.metric, d @ np.linalg.solve(p, d), rtol=1e-12)


def test_rules_against_their_formulas():
    # Independent: from the vectors, not from the inner products.
    rng = np.random.default_rng(13)
    for _ in range(20):
        g, g_, z_scale, d_ = rng.normal(size=(4, 6))
        p = np.abs(z_scale) + 0.1
        z, z_, y = p * g, p * g_, g - g_
        fr, pr = (g @ z) / (g_ @ z_), (z @ y) / (g_ @ z_)
        hs, dy = (z @ y) / (d_ @ y), (g @ z) / (d_ @ y)
        ls, cd = (z @ y) / -(d_ @ g_), (g @ z) / -(d_ @ g_)
        metric = d_ @ (d_ / p)
        b = (y @ z - (y @ (p * y)) * (g @ d_) / (d_ @ y)) / (d_ @ y)
        want = {
            "fletcher_reeves": fr,
            "polak_ribiere": max(0, pr),
            "hestenes_stiefel": max(0, hs),
            "dai_yuan": dy,
            "liu_storey": ls,
            "conjugate_descent": cd,
            "hs_dy": max(0, min(hs, dy)),
            "ls_cd": max(0, min(ls, cd)),
            "pr_fr": max(-fr, min(pr, fr)),
            "hager_zhang": max(b, 0.4 * (d_ @ g_) / metric),
        }
        assert set(want) == set(RULES)
        products = InnerProducts(
            gz=g @ z,
            gz_prev=g_ @ z_,
            gd_prev=g @ d_,
            slope_prev=g_ @ d_,
            yd_prev=y @ d_,
            yz=y @ z,
            ypy=y @ (p * y),
            metric_prev=metric,
        )
        with jax.enable_x64(True):
            products = jax.tree.map(jnp.asarray, products)
            for name, beta in want.items():
                got = get_beta_rule(name).compute(products)
                np.testing.assert_allclose(got, beta, rtol=1e-9, err_msg=name)


def test_fletcher_reeves_forgets_nothing(x64):
    """Unrolled: every z since the restart over its own g'z, times the last g'z."""
    rng = np.random.default_rng(0)
    preconditioner = optax.stateless(lambda g, _: jax.tree.map(lambda g: g / scale, g))
    scale = jnp.asarray(rng.uniform(0.5, 2, 4))
    tx = optax_nlcg.scale_by_conjugate_direction(preconditioner)
    state = tx.init(jnp.zeros(4))
    total = jnp.zeros(4)
    for i in range(6):
        # Close to the sum so far, so that nothing starts anew.
        g = jnp.asarray(np.ones(4) + 0.1 * rng.normal(size=4)) * 0.7**i
        direction, state = tx.update(g, state)
        z = g / scale
        total += z / (g @ z)
        np.testing.assert_allclose(direction, (g @ z) * total, rtol=1e-12)
    assert state.since_restart == 6


@pytest.mark.parametrize(
    "number", [0.5, np.float32(0.5), optax_nlcg.BetaRule(lambda _: 0.5)]
)
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_number_is_the_heavy_ball(number, nesterov):
    """And Nesterov's step that of Optax."""
    rng = np.random.default_rng(14)
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=number, nesterov=nesterov)
    momentum = optax.trace(0.5, nesterov=nesterov)
    # Gradients that change little: the directions all descend.
    gradients = jnp.asarray(rng.normal(size=8) + 0.1 * rng.normal(size=(5, 8)))
    state, momentum_state = tx.init(gradients[0]), momentum.init(gradients[0])
    for g in gradients:
        started = state.count > 0
        step, state = tx.update(g, state)
        want, momentum_state = momentum.update(g, momentum_state)
        # The first step has no past to step ahead from.
        np.testing.assert_allclose(step, want if started else g, rtol=1e-6)
        np.testing.assert_allclose(state.direction, momentum_state.trace, rtol=1e-6)
        assert state.beta == (0.5 if started else 0)


def test_nesterov_changes_steps_and_nothing_that_is_kept():
    """Also where beta is negative: then the step is along z."""
    rng = np.random.default_rng(16)
    gradients = jnp.asarray(rng.normal(size=(12, 6)))
    rule = optax_nlcg.BetaRule(lambda p: jnp.where(p.gz > p.gz_prev, 0.5, -0.5))
    make = functools.partial(optax_nlcg.scale_by_conjugate_direction, beta_rule=rule)
    plain, ahead = make(), make(nesterov=True)
    state, signs = plain.init(gradients[0]), set()
    for g in gradients:
        step, new_state = ahead.update(g, state)
        d, state = plain.update(g, state)
        jax.tree.map(np.testing.assert_array_equal, new_state, state)
        np.testing.assert_allclose(step, g + max(state.beta, 0) * d, rtol=1e-5)
        signs.add(float(jnp.sign(state.beta)))
    assert signs == {-1, 0, 1}


def test_a_step_ahead_that_overflows_is_not_made():
    """The direction fits float16, the step along twice of it does not."""
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=1.0, nesterov=True)
    g = jnp.array([25_000.0, 1.0], jnp.float16)
    _, state = tx.update(g, tx.init(g))
    step, state = tx.update(g, state)
    np.testing.assert_array_equal(step, g)
    assert state.beta == 0
    assert state.num_skipped == 0


def test_a_gradient_of_zero_starts_anew():
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=0.5)
    _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    p, state = tx.update(jnp.zeros(3), state)
    np.testing.assert_array_equal(p, 0)
    assert (state.beta, state.since_restart) == (0, 1)


def test_a_chain_around_the_preconditioner_changes_nothing():
    """What the rule asks for a second time in a step is no news of the curvature."""
    own = optax_nlcg.scale_by_hessian_diagonal(estimator=None)
    rng, results = np.random.default_rng(18), []
    steps = rng.normal(size=(6, 2, 4)).astype(np.float32)
    for preconditioner in (own, optax.chain(own, optax.identity())):
        tx = optax_nlcg.scale_by_conjugate_direction(preconditioner, "hager_zhang")
        state, betas = tx.init(steps[0, 0]), []
        for g, d in steps:
            _, state = tx.update(jnp.asarray(g), state, hessian_diagonal=d)
            betas.append(state.beta)
        results.append(np.array(betas))
    assert np.count_nonzero(results[0]) > 2
    np.testing.assert_allclose(*results, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "events", [["zero"], ["same"], ["nan"], ["inf"], ["zero", "zero", "nan", "same"]]
)
def test_never_nan(rule, events):
    g0 = jnp.array([1.0, -2.0, 0.5])
    special = {
        "zero": jnp.zeros(3),
        "same": g0,
        "nan": g0.at[1].set(jnp.nan),
        "inf": g0.at[1].set(jnp.inf),
    }
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=rule)
    state = tx.init(g0)
    _, state = tx.update(g0, state)
    for event in events:
        before = state
        p, state = tx.update(special[event], state)
        assert jnp.all(jnp.isfinite(p))
        if event in ("nan", "inf"):
            np.testing.assert_array_equal(p, 0)
            assert state.num_skipped == before.num_skipped + 1
            kept = before._replace(num_skipped=state.num_skipped)
            jax.tree.map(np.testing.assert_array_equal, state, kept)
        assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    p, _ = tx.update(g0, state)
    assert jnp.vdot(p, g0) > 0


def test_an_overflowed_direction_is_forgotten():
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=1.0)
    g = jnp.array([1.0, 1.0])
    _, state = tx.update(g, tx.init(g))
    state = state._replace(direction=jnp.array([jnp.inf, 1.0]))
    p, state = tx.update(g, state)
    np.testing.assert_array_equal(p, g)
    assert state.beta == 0


@pytest.mark.parametrize("way", ["alone", "in the direction", "chained in it"])
@pytest.mark.parametrize(
    "make",
    [
        optax_nlcg.scale_by_diagonal_bfgs,
        functools.partial(optax_nlcg.scale_by_hessian_diagonal, estimator=None),
    ],
)
def test_unknown_arguments_are_ignored(make, way):
    """Whatever their names: a batch often has a mask."""
    direction = optax_nlcg.scale_by_conjugate_direction
    tx = {
        "alone": make,
        "in the direction": lambda: direction(make()),
        "chained in it": lambda: direction(optax.chain(make())),
    }[way]()
    x = jnp.ones(3)
    for g in (x, jnp.full(3, jnp.nan)):
        want = tx.update(g, tx.init(x), x)
        got = tx.update(g, tx.init(x), x, refresh=False, mask=jnp.zeros(5))
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert np.isfinite(got[0]).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_wider_than_the_parameters_has_no_curvature_by_rounding(rule):
    params = jnp.ones(64, jnp.bfloat16)
    wide = jnp.asarray(np.random.default_rng(18).normal(size=64), jnp.float32)
    tx, betas = optax_nlcg.scale_by_conjugate_direction(beta_rule=rule), []
    for g in (wide, wide.astype(jnp.bfloat16)):
        state = tx.init(params)
        for _ in range(3):  # the same gradient: of all rules that look at y, y = 0
            _, state = tx.update(g, state, params)
        betas.append(state.beta)
    np.testing.assert_allclose(*betas, atol=0.02)


def test_a_rule_of_ones_own_gets_what_it_asks_for():
    seen = []
    rule = optax_nlcg.BetaRule(
        lambda p: seen.append(p.ypy) or 0 * p.gz, needs_preconditioned_difference=True
    )
    tx = optax_nlcg.scale_by_conjugate_direction(optax.scale(0.5), rule)
    state = tx.init(jnp.zeros(2))
    for g in ([1.0, 0.0], [0.0, 2.0]):
        _, state = tx.update(jnp.array(g), state)
    assert seen == [0.5, 2.5]


def test_the_order_of_the_arguments_is_kept():
    """New ones come last: calls by position go on to mean the same."""
    names = list(inspect.signature(optax_nlcg.scale_by_conjugate_direction).parameters)
    assert names == [
        *("preconditioner", "beta_rule", "beta_bounds"),
        *("restart_every", "restart_threshold", "accumulator_dtype"),
        *("restart_cycles", "nesterov"),
    ]


def test_restart_every():
    rng = np.random.default_rng(15)
    tx = optax_nlcg.scale_by_conjugate_direction(restart_every=3)
    g = rng.normal(size=8)
    state, betas = tx.init(g), []
    for _ in range(7):
        _, state = tx.update(jnp.asarray(g + 0.1 * rng.normal(size=8)), state)
        betas.append(float(state.beta))
    assert [beta == 0 for beta in betas] == [i % 3 == 0 for i in range(7)]


def test_powell_restart():
    tx = optax_nlcg.scale_by_conjugate_direction(restart_threshold=0.2)
    _, state = tx.update(jnp.array([1.0, 0.0]), tx.init(jnp.zeros(2)))
    for along, restarts in [(0.0, False), (0.1, False), (0.5, True), (-0.5, True)]:
        _, after = tx.update(jnp.array([along, 1.0]), state)
        assert (after.beta == 0) == restarts


def test_bounds():
    tx = optax_nlcg.scale_by_conjugate_direction(beta_bounds=(0.0, 0.25))
    _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    _, state = tx.update(jnp.ones(2), state)
    assert state.beta == 0.25


@pytest.mark.parametrize("rule", RULES)
def test_complex_is_two_reals(rule):
    rng = np.random.default_rng(16)
    parts = jnp.asarray(rng.normal(size=(6, 2, 5)), jnp.float32)
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=rule)
    z_state = tx.init(parts[0, 0] + 1j * parts[0, 1])
    r_state = tx.init(parts[0])
    for part in parts:
        z, z_state = tx.update(part[0] + 1j * part[1], z_state)
        r, r_state = tx.update(part, r_state)
        np.testing.assert_allclose(z, r[0] + 1j * r[1], rtol=2e-4, atol=1e-5)
    assert z.dtype == jnp.complex64


def test_accumulator_dtype():
    params = {"a": jnp.ones(3, jnp.bfloat16), "z": jnp.ones(3, jnp.complex64)}
    tx = optax_nlcg.scale_by_conjugate_direction(accumulator_dtype=jnp.float32)
    updates, state = tx.update(params, tx.init(params), params)
    assert state.direction["a"].dtype == jnp.float32
    assert state.direction["z"].dtype == jnp.complex64
    assert updates["a"].dtype == jnp.bfloat16


@pytest.mark.parametrize("traced", [False, True])
def test_restart_cycles(traced):
    make = optax_nlcg.scale_by_conjugate_direction
    make = optax.inject_hyperparams(make) if traced else make
    tx = make(restart_cycles=1.5)
    update = jax.jit(tx.update) if traced else tx.update
    g = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray(3.0)}  # n = 3: every 5th step
    state = tx.init(g)
    lengths = []
    for _ in range(11):
        _, state = update(g, state, g)
        lengths.append(int(optax.tree.get(state, "since_restart")))
    assert lengths == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1]


def test_restart_cycles_of_more_parameters_than_an_integer_counts():
    tx = optax_nlcg.scale_by_conjugate_direction(restart_cycles=6)
    g = jax.ShapeDtypeStruct((2**30,), jnp.bfloat16)
    updates, _ = jax.eval_shape(tx.update, g, jax.eval_shape(tx.init, g))
    assert updates.shape == g.shape
