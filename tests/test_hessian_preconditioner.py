"""The Hessian-diagonal preconditioner: its formula, both ways to feed it, its uses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg

MATRIX = np.array([[3.0, 1.0, 0.5], [1.0, -2.0, 0.2], [0.5, 0.2, 0.1]])


def quadratic(x):
    matrix = jnp.asarray(MATRIX, x.dtype)
    return x @ matrix @ x / 2


def types(values):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), values)


def feed(tx, diagonals, like):
    """Passes diagonals one by one; returns what P makes of ones, and the state."""
    state = tx.init(like)
    ones = jax.tree.map(jnp.ones_like, like)
    out = ones
    for diagonal in diagonals:
        out, state = tx.update(ones, state, hessian_diagonal=diagonal)
    return out, state


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("averaging", ["signed", "row_norm"])
@pytest.mark.parametrize(
    ("floor", "damping", "power", "decay"),
    [(0.03, 0.0, 1.0, 0.9), (0.5, 0.1, 0.5, 0.5), (1e-6, 2.0, 0.0, 0.0)],
)
def test_formula(averaging, normalize, floor, damping, power, decay):
    like = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(())}
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(4, 7))
    diagonals = [
        {"w": jnp.array(d[:6].reshape(2, 3)), "b": jnp.array(d[6])} for d in flat
    ]
    tx = optax_nlcg.scale_by_hessian_diagonal(
        decay=decay,
        floor=floor,
        damping=damping,
        power=power,
        normalize=normalize,
        averaging=averaging,
    )
    out, state = feed(tx, diagonals, like)

    weights = decay ** np.arange(len(flat) - 1.0, -1, -1)
    weights /= weights.sum()
    if averaging == "signed":
        average = np.abs(weights @ flat)
    else:
        average = np.sqrt(weights @ flat**2)
    mean = average.mean()
    expected = (np.maximum(average / mean, floor) + damping) ** -power
    if not normalize:
        expected *= mean**-power
    got = np.append(out["w"].ravel(), out["b"])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(state.curvature_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.preconditioner_min, got.min(), rtol=1e-6)
    np.testing.assert_allclose(state.preconditioner_mean, got.mean(), rtol=1e-6)
    np.testing.assert_allclose(state.preconditioner_max, got.max(), rtol=1e-6)
    assert (state.count, state.num_refreshes, state.num_skipped) == (4, 4, 0)


def test_identity_before_the_first_diagonal():
    tx = optax_nlcg.scale_by_hessian_diagonal()
    grads = jnp.array([1.0, -2.0, 3.0])
    out, state = tx.update(grads, tx.init(grads), hessian_diagonal=None)
    np.testing.assert_array_equal(out, grads)
    assert (state.count, state.num_refreshes) == (1, 0)


def test_no_curvature_anywhere_is_the_identity():
    grads = jnp.array([1.0, -2.0])
    out, state = feed(optax_nlcg.scale_by_hessian_diagonal(), [jnp.zeros(2)], grads)
    np.testing.assert_array_equal(out, [1, 1])
    assert state.num_refreshes == 1


@pytest.mark.parametrize("like", [{}, {"w": jnp.ones(2), "none": jnp.ones((0, 3))}])
def test_nothing_to_precondition(like):
    out, state = feed(optax_nlcg.scale_by_hessian_diagonal(), [like, like], like)
    jax.tree.map(np.testing.assert_array_equal, out, like)
    assert (state.num_refreshes, state.num_skipped) == (2, 0)


@pytest.mark.parametrize("averaging", ["signed", "row_norm"])
def test_squares_in_float16_need_not_fit(averaging):
    tx = optax_nlcg.scale_by_hessian_diagonal(averaging=averaging)
    d = jnp.asarray([1e4, 3e4], jnp.float16)
    out, state = feed(tx, [d, d], d)
    np.testing.assert_allclose(out, [2, 2 / 3], rtol=1e-3)
    assert state.num_skipped == 0


def test_several_probes():
    tx, x = optax_nlcg.scale_by_hessian_diagonal(num_probes=5), jnp.ones(3)
    _, state = tx.update(x, tx.init(x), x, value_fn=quadratic)
    key = jax.random.fold_in(jax.random.key(0), 0)
    want = optax_nlcg.hessian_diagonal(quadratic, x, key, num_probes=5)
    np.testing.assert_allclose(state.average, np.abs(want), rtol=1e-5)


@pytest.mark.parametrize("averaging", ["signed", "row_norm"])
def test_what_the_averages_tend_to(averaging):
    """Signed: the diagonal, negative entries included. Row norm: the rows' norms."""
    tx = optax_nlcg.scale_by_hessian_diagonal(
        decay=0.9995, update_every=1, averaging=averaging
    )
    x = jnp.ones(3)

    def step(state, _):
        return tx.update(x, state, x, value_fn=quadratic)[1], None

    state, _ = jax.lax.scan(step, tx.init(x), None, length=4000)
    expected = np.diag(MATRIX)
    if averaging == "row_norm":
        expected = np.linalg.norm(MATRIX, axis=1)
    np.testing.assert_allclose(state.average, expected, atol=0.1)


@pytest.mark.parametrize("estimator", ["hutchinson", "exact"])
@pytest.mark.parametrize("beta_rule", ["fletcher_reeves", "hager_zhang"])
@pytest.mark.parametrize("update_every", [1, 3])
def test_both_ways_give_the_same_numbers(update_every, beta_rule, estimator):
    """Also where the rule applies the preconditioner twice in a step."""

    def value_fn(x):
        return jnp.sum(jnp.cosh(x) * jnp.array([1.0, 10.0, 100.0])) + x[0] * x[1] * x[2]

    def make(**options):
        return optax.chain(
            optax_nlcg.scale_by_conjugate_direction(
                optax_nlcg.scale_by_hessian_diagonal(seed=5, **options),
                beta_rule=beta_rule,
            ),
            optax.scale_by_learning_rate(0.01),
        )

    own = make(estimator=estimator, update_every=update_every)
    given = make(estimator=None)
    start = jnp.array([1.0, -1.0, 0.5])
    x, own_state = start, own.init(start)
    other, given_state = start, given.init(start)

    @jax.jit
    def own_step(x, state):
        updates, state = own.update(jax.grad(value_fn)(x), state, x, value_fn=value_fn)
        return optax.apply_updates(x, updates), state

    plain = jax.jit(jax.value_and_grad(value_fn))
    refresh = jax.jit(
        optax_nlcg.value_grad_and_hessian_diagonal(value_fn, method=estimator)
    )
    for step in range(7):
        x, own_state = own_step(x, own_state)
        if step % update_every == 0:
            key = jax.random.fold_in(jax.random.key(5), step)
            _, grads, diagonal = refresh(other, key=key)
        else:
            (_, grads), diagonal = plain(other), None
        updates, given_state = given.update(
            grads,
            given_state,
            other,
            value_fn=value_fn,  # for some other stage: not used here
            hessian_diagonal=diagonal,
        )
        other = optax.apply_updates(other, updates)
        np.testing.assert_allclose(x, other, rtol=1e-5, atol=1e-6)
    assert value_fn(x) < 0.9 * value_fn(start)
    got, want = (optax.tree.get(s, "num_refreshes") for s in (own_state, given_state))
    assert got == want == len(range(0, 7, update_every))


def test_a_step_without_what_an_estimate_needs():
    """It would be the identity, for ever and without a word."""
    x = jnp.ones(3)
    tx = optax_nlcg.scale_by_hessian_diagonal()
    with pytest.raises(ValueError, match="hessian_diagonal needs `value_fn`"):
        tx.update(x, tx.init(x), x, value=1.0)
    for same, extra in (
        (tx, {"hessian_diagonal": None}),
        (optax_nlcg.scale_by_hessian_diagonal(None), {}),
    ):
        z, state = same.update(x, same.init(x), x, **extra)
        np.testing.assert_array_equal(z, x)
        assert state.num_refreshes == 0


def test_a_second_application_in_a_step_is_the_same_preconditioner():
    tx = optax_nlcg.scale_by_hessian_diagonal(update_every=1)
    x = jnp.ones(3)
    out, state = tx.update(x, tx.init(x), x, value_fn=quadratic)
    again, _ = tx.update(x, state, x, value_fn=quadratic, hessian_diagonal=None)
    np.testing.assert_array_equal(again, out)


def test_applies_its_matrix_without_a_refresh():
    tx = optax_nlcg.scale_by_hessian_diagonal(floor=1e-6)
    x, d = jnp.ones(4), jnp.asarray([1.0, 2.0, 4.0, 1.0])
    _, state = tx.update(x, tx.init(x), x, hessian_diagonal=d)
    v = jnp.asarray([1.0, np.nan, 3.0, np.inf])
    z, same = tx.update(v, state, x, hessian_diagonal=3 * d, _refresh=False)
    assert same is state
    np.testing.assert_allclose(z, v / (d / 2), rtol=1e-6)
    # Nor is it looked whether the gradient is finite, unless that is asked for.
    z, state = tx.update(v, state, x, hessian_diagonal=None, _mask=False)
    np.testing.assert_allclose(z, v / (d / 2), rtol=1e-6)
    assert state.num_skipped == 0
    z, state = tx.update(v, state, x, hessian_diagonal=None)
    np.testing.assert_array_equal(z, 0.0)
    assert state.num_skipped == 1


def test_gauss_newton_bartlett_in_the_convenient_way():
    tx = optax_nlcg.scale_by_hessian_diagonal("gauss_newton_bartlett")
    w = jnp.ones((2, 3))
    inputs = jnp.arange(8.0).reshape(4, 2)

    def value_fn(w):
        logits = inputs @ w
        return jax.nn.logsumexp(logits, axis=-1).mean(), logits

    _, state = tx.update(w, tx.init(w), w, value_fn=value_fn)
    key = jax.random.fold_in(jax.random.key(0), 0)
    want = optax_nlcg.hessian_diagonal(value_fn, w, key, method="gauss_newton_bartlett")
    np.testing.assert_allclose(state.average, want, rtol=1e-5)


@pytest.mark.parametrize("averaging", ["signed", "row_norm"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diagonal_that_is_not_finite_is_dropped_and_counted(bad, averaging):
    tx = optax_nlcg.scale_by_hessian_diagonal(averaging=averaging)
    grads = jnp.ones(3)
    good = [jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 2.0, 1.0])]
    want, want_state = feed(tx, good, grads)
    got, state = feed(tx, [good[0], jnp.array([1.0, bad, 1.0]), good[1]], grads)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(state.average, want_state.average)
    assert (state.num_skipped, state.num_refreshes) == (1, 2)


@pytest.mark.parametrize("bad", ["gradient", "loss"])
@pytest.mark.parametrize("around", [lambda tx: tx, optax_nlcg.nlcg])
def test_a_diagonal_of_a_step_that_is_skipped_is_left_out(around, bad):
    tx = optax_nlcg.scale_by_hessian_diagonal()
    tx = tx if around is not optax_nlcg.nlcg else around(0.1, preconditioner=tx)
    x = jnp.ones(3)
    _, state = tx.update(
        x, tx.init(x), x, value=1.0, hessian_diagonal=jnp.array([1.0, 2.0, 4.0])
    )
    average, skipped = (
        optax.tree.get(state, "HessianDiagonalState").average,
        optax.tree.get(state, "HessianDiagonalState").num_skipped,
    )
    gradient = x.at[1].set(jnp.nan) if bad == "gradient" else x
    value = jnp.inf if bad == "loss" else 1.0
    _, state = tx.update(
        gradient, state, x, value=value, hessian_diagonal=jnp.full(3, 1e10)
    )
    after = optax.tree.get(state, "HessianDiagonalState")
    np.testing.assert_array_equal(after.average, average)
    assert after.num_refreshes == 1
    assert after.num_skipped > skipped


def test_a_decay_that_float32_takes_for_one():
    tx = optax_nlcg.scale_by_hessian_diagonal(decay=1 - 1e-8, averaging="signed")
    _, state = feed(tx, [jnp.array([1.0, 3.0]), jnp.array([3.0, 3.0])], jnp.zeros(2))
    np.testing.assert_allclose(state.average, [2.0, 3.0], rtol=1e-6)


def test_more_parameters_than_an_integer_counts():
    params = jax.ShapeDtypeStruct((2**30, 9), jnp.bfloat16)
    tx = optax_nlcg.scale_by_hessian_diagonal()

    def step(params):
        return tx.update(params, tx.init(params), params, hessian_diagonal=params)

    assert jax.eval_shape(step, params)[0].shape == params.shape


@pytest.mark.parametrize("averaging", ["signed", "row_norm"])
@pytest.mark.parametrize("average_spatial", [False, True])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_curvature_whose_square_does_not_fit(averaging, average_spatial, scale):
    rng = np.random.default_rng(8)
    diagonals = jnp.asarray(rng.normal(size=(3, 2, 2, 3, 4)), jnp.float32)
    tx = optax_nlcg.scale_by_hessian_diagonal(
        averaging=averaging, average_spatial=average_spatial
    )
    want, state = feed(tx, diagonals, diagonals[0])
    got, of_scaled = feed(tx, scale * diagonals, diagonals[0])
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(of_scaled.average / scale, state.average, rtol=1e-5)
    assert of_scaled.num_refreshes == 3


@pytest.mark.parametrize("averaging", ["signed", "row_norm"])
def test_spatial_averaging(averaging):
    rng = np.random.default_rng(0)
    diagonal = {
        "conv": jnp.array(rng.normal(size=(3, 3, 2, 4))),
        "attention": jnp.array(rng.normal(size=(3, 2, 4))),
        "dense": jnp.array(rng.normal(size=(2, 4))),
    }
    tx = optax_nlcg.scale_by_hessian_diagonal(averaging=averaging, average_spatial=True)
    like = jax.tree.map(jnp.zeros_like, diagonal)
    _, state = feed(tx, [diagonal], like)
    conv = diagonal["conv"]
    if averaging == "signed":
        mean = conv.mean(axis=(0, 1), keepdims=True)
    else:
        mean = jnp.sqrt((conv**2).mean(axis=(0, 1), keepdims=True))
        diagonal = jax.tree.map(jnp.abs, diagonal)
    want = diagonal | {"conv": jnp.broadcast_to(mean, conv.shape)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.average, want
    )


def test_an_ill_conditioned_diagonal_quadratic_takes_a_handful_of_steps():
    """Condition number 1e6: alone, conjugate gradients need hundreds of steps."""
    scale = jnp.logspace(-3, 3, 50)

    def fun(x):
        return jnp.sum(scale * (x - 1) ** 2) / 2

    def solve(preconditioner, steps):
        tx = optax_nlcg.scale_by_conjugate_direction(
            preconditioner, beta_rule="polak_ribiere"
        )

        def step(carry, _):
            x, state = carry
            g = jax.grad(fun)(x)
            p, state = tx.update(g, state, x, value_fn=fun)
            curvature = jnp.sum(scale * p**2)  # exact step
            x = x - jnp.where(curvature > 0, jnp.vdot(g, p) / curvature, 0) * p
            return (x, state), None

        start = jnp.zeros_like(scale)
        (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, length=steps)
        return float(jnp.max(jnp.abs(x - 1)))

    tx = optax_nlcg.scale_by_hessian_diagonal(floor=1e-8)
    assert solve(tx, 3) < 1e-5
    assert solve(optax.identity(), 50) > 0.1


def test_after_a_refresh_fletcher_reeves_must_start_anew_and_polak_ribiere_not():
    """With exact steps: coefficients that mix two metrics spoil Fletcher-Reeves.

    Condition number 1e6, with off-diagonal curvature, so that estimates are noisy.
    """
    n, update_every = 100, 10
    rng = np.random.default_rng(0)
    coupling = rng.normal(size=(n, n)) / np.sqrt(n)
    scale = np.sqrt(np.logspace(-3, 3, n))
    hessian = np.eye(n) + 0.1 * coupling @ coupling.T
    hessian = jnp.asarray(scale[:, None] * hessian * scale, jnp.float32)
    start = jnp.asarray(rng.normal(size=n) / scale, jnp.float32)

    def fun(x):
        return x @ hessian @ x / 2

    def solve(beta_rule, restart_every):
        tx = optax_nlcg.scale_by_conjugate_direction(
            optax_nlcg.scale_by_hessian_diagonal(floor=1e-8, update_every=update_every),
            beta_rule=beta_rule,
            restart_every=restart_every,
        )

        def step(carry, _):
            x, state = carry
            g = hessian @ x
            p, state = tx.update(g, state, x, value_fn=fun)
            curvature = p @ hessian @ p
            x = x - jnp.where(curvature > 0, (g @ p) / curvature, 0) * p
            return (x, state), None

        (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, length=60)
        return float(fun(x) / fun(start))

    assert solve("fletcher_reeves", None) > 1e-6
    assert solve("fletcher_reeves", update_every) < 1e-10
    assert solve("polak_ribiere", None) < 1e-10
    assert solve("hager_zhang", None) < 1e-10


def test_step_length_one_with_the_inverse_hessians_scale():
    scale = jnp.logspace(-3, 3, 20)
    tx = optax.chain(
        optax_nlcg.scale_by_hessian_diagonal(floor=1e-9, normalize=False),
        optax.scale_by_learning_rate(1.0),
    )
    x = jnp.zeros(20)

    def fun(x):
        return jnp.sum(scale * (x - 1) ** 2) / 2

    updates, _ = tx.update(jax.grad(fun)(x), tx.init(x), x, value_fn=fun)
    np.testing.assert_allclose(updates, np.ones(20), rtol=1e-5)


def test_preconditioning_does_not_depend_on_the_scale_of_the_loss():
    diagonal = jnp.array([1e-3, -2.0, 30.0])
    tx = optax_nlcg.scale_by_hessian_diagonal()
    one, _ = feed(tx, [diagonal], diagonal)
    for factor in (1e-15, 1e15):
        scaled, _ = feed(tx, [diagonal * factor], diagonal)
        np.testing.assert_allclose(scaled, one, rtol=1e-5)


@pytest.mark.parametrize("averaging", ["signed", "row_norm"])
def test_a_complex_parameter_stands_for_two_real_ones(averaging):
    rng = np.random.default_rng(0)
    diagonals, grads = rng.normal(size=(3, 2, 4)), rng.normal(size=(2, 4))
    tx = optax_nlcg.scale_by_hessian_diagonal(averaging=averaging)

    def as_complex(pair):
        return jnp.asarray(pair[0] + 1j * pair[1])

    real_state = tx.init(jnp.zeros((2, 4)))
    state = tx.init(jnp.zeros(4, jnp.complex64))
    for d in diagonals:
        want, real_state = tx.update(
            jnp.asarray(grads), real_state, hessian_diagonal=jnp.asarray(d)
        )
        got, state = tx.update(as_complex(grads), state, hessian_diagonal=as_complex(d))
    np.testing.assert_allclose(got, as_complex(np.asarray(want)), rtol=1e-5)
    np.testing.assert_allclose(state.preconditioner_max, real_state.preconditioner_max)


@pytest.mark.parametrize("way", ["given", "own"])
@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float32", "float64", "complex64", "complex128"]
)
def test_types_are_kept(dtype, way):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        tx = optax_nlcg.scale_by_hessian_diagonal(update_every=2)
        params = {"w": jnp.ones((3, 2), dtype), "b": jnp.ones((), dtype)}
        init = tx.init(params)

        def fun(p):
            return sum(jnp.sum(jnp.abs(x) ** 3) for x in jax.tree.leaves(p))

        def step(state, _):
            extra = {"value_fn": fun} if way == "own" else {"hessian_diagonal": params}
            updates, state = tx.update(params, state, params, **extra)
            return state, updates

        state, updates = jax.jit(lambda s: jax.lax.scan(step, s, None, length=3))(init)
        assert types(state) == types(init)
        assert types(jax.tree.map(lambda u: u[0], updates)) == types(params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        wide = "float64" if dtype in ("float64", "complex128") else "float32"
        assert state.curvature_mean.dtype == wide
        assert state.num_refreshes == (2 if way == "own" else 3)


def test_donation_and_no_aliasing():
    tx = optax_nlcg.scale_by_hessian_diagonal()
    params = {"w": jnp.ones((4, 4)), "b": jnp.zeros(4)}
    state = tx.init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    step = jax.jit(
        lambda g, s: tx.update(g, s, hessian_diagonal=g), donate_argnums=(0, 1)
    )
    step(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_abstract_init():
    tx = optax_nlcg.scale_by_hessian_diagonal()
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tx.init(params)
    )


def test_numbers_may_be_injected():
    plain = optax_nlcg.scale_by_hessian_diagonal(num_probes=2, update_every=2)
    injected = optax.inject_hyperparams(optax_nlcg.scale_by_hessian_diagonal)(
        num_probes=2, update_every=2
    )
    x = jnp.array([1.0, -2.0, 0.5])
    state, other = plain.init(x), injected.init(x)
    for _ in range(3):
        want, state = plain.update(x, state, x, value_fn=quadratic)
        got, other = injected.update(x, other, x, value_fn=quadratic)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_vmapped_lane_equals_the_single_run():
    tx = optax_nlcg.scale_by_hessian_diagonal(update_every=2)

    def run(x):
        state = tx.init(x)
        for _ in range(3):

            def fun(x):
                return jnp.sum(x**4) + x[0] * x[1]

            updates, state = tx.update(jax.grad(fun)(x), state, x, value_fn=fun)
            x = x - 0.01 * updates
        return x

    lanes = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    for lane, single in zip(jax.vmap(run)(lanes), lanes, strict=True):
        np.testing.assert_allclose(lane, run(single), rtol=1e-5)


@pytest.mark.parametrize("params", [{}, (), [jnp.ones((0, 3))], jnp.ones(())])
def test_degenerate_trees(params):
    tx = optax_nlcg.scale_by_hessian_diagonal()
    out, state = feed(tx, [params], params)
    assert jax.tree.structure(out) == jax.tree.structure(params)
    assert state.preconditioner_min == state.preconditioner_max == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "bfgs"}, ValueError, "`estimator` must be one of 'hutchinson'"),
        ({"decay": 1.0}, ValueError, r"`decay` must be a number in \[0, 1\)"),
        ({"update_every": 0}, ValueError, "`update_every` must be an integer"),
        ({"num_probes": 0}, ValueError, "`num_probes` must be an integer"),
        ({"floor": 0.0}, ValueError, "`floor` must be a number in"),
        ({"damping": -1.0}, ValueError, "`damping` must be a number in"),
        ({"power": "half"}, TypeError, "`power` must be a number"),
        ({"normalize": 1}, TypeError, "`normalize` must be True or False"),
        ({"averaging": "mean"}, ValueError, "`averaging` must be one of 'signed'"),
        ({"seed": 0.5}, TypeError, "`seed` must be an integer"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        optax_nlcg.scale_by_hessian_diagonal(**options)


def test_missing_and_mismatched_arguments_of_update_are_named():
    tx = optax_nlcg.scale_by_hessian_diagonal()
    x = jnp.ones(3)
    state = tx.init(x)
    with pytest.raises(ValueError, match="scale_by_hessian_diagonal needs `params`"):
        tx.update(x, state, value_fn=quadratic)
    with pytest.raises(ValueError, match="`hessian_diagonal` has shape"):
        tx.update(x, state, hessian_diagonal=jnp.ones(2))
