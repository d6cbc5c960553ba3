"""The curvature line search: its formula, exactness, noise control and promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_nlcg

SEARCH = optax_nlcg.scale_by_curvature_line_search
MATRIX = np.diag(np.logspace(-1, 1, 5)) + 0.05
CENTRE = np.arange(1.0, 6.0)


def quadratic(x):
    r = x - jnp.asarray(CENTRE, x.dtype)
    return r @ jnp.asarray(MATRIX, x.dtype) @ r / 2


def types(values):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), values)


def run(tx, fun, x, steps):
    state = tx.init(x)

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(fun)(x), state, x, value_fn=fun)
        return (optax.apply_updates(x, updates), state), x

    (x, state), path = jax.lax.scan(step, (x, state), None, length=steps)
    return x, state, path


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_the_first_step_minimizes_the_damped_model(damping):
    x = jnp.zeros(5)
    u = jnp.array([-1.0, 2.0, 0.5, 1.0, 3.0])
    tx = SEARCH(damping=damping)
    out, state = tx.update(u, tx.init(x), x, value_fn=quadratic)
    g = MATRIX @ (0 - CENTRE)
    expected = abs(g @ u) / ((1 + damping) * (u @ MATRIX @ u))
    np.testing.assert_allclose(out, expected * u, rtol=1e-5)
    np.testing.assert_allclose(state.scale, expected, rtol=1e-5)
    np.testing.assert_allclose(state.curvature, u @ MATRIX @ u / (u @ u), rtol=1e-5)
    np.testing.assert_array_equal(state.previous_update, out)


@pytest.mark.parametrize("rule", ["fletcher_reeves", "polak_ribiere", "hager_zhang"])
@pytest.mark.parametrize("learning_rate", [1e-6, 1.0, 1e6])
def test_exact_on_quadratics_whatever_the_learning_rate(rule, learning_rate):
    """Linear conjugate gradients: as many steps as dimensions."""
    with jax.enable_x64(True):
        tx = optax_nlcg.nlcg(
            learning_rate,
            beta_rule=rule,
            preconditioner=optax.identity(),
            line_search=SEARCH(decay=0.0),
        )
        x, state, path = run(tx, quadratic, jnp.zeros(5), 5)
        np.testing.assert_allclose(x, CENTRE, rtol=1e-10)
        assert np.abs(path[4] - CENTRE).max() > 1e-3  # and not in fewer
        np.testing.assert_allclose(optax.tree.get(state, "trust"), 1, rtol=1e-9)


def test_neither_the_scale_of_the_update_nor_of_the_loss_matters():
    start = jnp.zeros(5)

    def path(update_scale, loss_scale):
        tx = optax.chain(optax.scale(-update_scale), SEARCH())
        return run(tx, lambda x: loss_scale * quadratic(x), start, 6)[2]

    want = path(1.0, 1.0)
    np.testing.assert_allclose(path(1e-4, 1.0), want, rtol=1e-4)
    np.testing.assert_allclose(path(1.0, 1e6), want, rtol=1e-4)


def test_the_sign_may_come_after():
    before = optax.chain(optax.scale(-1.0), SEARCH())
    after = optax.chain(SEARCH(), optax.scale(-1.0))
    start = jnp.zeros(5)

    def fun(x):
        return quadratic(x) + jnp.sum(jnp.cos(3 * x))

    paths = [run(tx, fun, start, 10)[2] for tx in (before, after)]
    np.testing.assert_allclose(*paths, rtol=1e-4, atol=1e-5)


def test_negative_curvature_counts_by_its_size():
    def fun(x):
        return -2.0 * jnp.sum(x**2)

    x = jnp.array([1.0, 0.0])
    tx = optax.chain(optax.scale(-1.0), SEARCH())
    updates, state = tx.update(jax.grad(fun)(x), tx.init(x), x, value_fn=fun)
    np.testing.assert_allclose(updates, [1.0, 0.0], rtol=1e-6)  # downhill
    # The model knows that the slope has doubled: trust stays complete.
    x = optax.apply_updates(x, updates)
    _, state = tx.update(jax.grad(fun)(x), state, x, value_fn=fun)
    np.testing.assert_allclose(state[1].trust, 1.0, rtol=1e-6)


def noisy_quadratics(sigma, steps, dimension=50):
    """Losses |x - b|^2 / 2 with another b at every step, of mean zero."""
    b = sigma * jax.random.normal(jax.random.key(0), (steps, dimension))

    def run(tx, x):
        def step(carry, b):
            x, state = carry

            def fun(x):
                return jnp.sum((x - b) ** 2) / 2

            updates, state = tx.update(jax.grad(fun)(x), state, x, value_fn=fun)
            return (optax.apply_updates(x, updates), state), jnp.mean(x**2)

        (_, state), errors = jax.lax.scan(step, (x, tx.init(x)), b)
        return np.asarray(errors), state

    return run, dimension


def test_trust_is_the_part_of_the_slope_that_is_no_noise():
    run, dimension = noisy_quadratics(sigma=1.0, steps=400)
    # Steps kept tiny, so that x stays and the signal with it.
    tx = optax.chain(optax.scale(-1.0), SEARCH(max_step=1e-4, decay=0.99))
    signal = 2.0
    _, state = run(tx, jnp.full(dimension, np.sqrt(signal)))
    np.testing.assert_allclose(state[1].trust, signal / (signal + 1.0), atol=0.05)


def isotropic(scale):
    """A loss with this curvature in every direction, of slope -scale at zero."""
    return lambda x: scale * jnp.sum((x - 1) ** 2) / 2


def searched_along_one(tx, factors):
    """The search at zero on one coordinate, whose batches differ by these factors."""
    x = jnp.zeros(1)
    state, history = tx.init(x), []
    for factor in factors:
        _, state = tx.update(jnp.ones(1), state, x, value_fn=isotropic(factor))
        history.append(state)
    return history


@pytest.mark.parametrize(("factor", "ratio"), [(-50.0, -1.0), (50.0, 2.0)])
def test_one_outlier_counts_little(factor, ratio):
    """And trust beyond one lengthens no step."""
    tx = SEARCH(decay=0.9)
    _, state = searched_along_one(tx, [1.0, factor])
    np.testing.assert_allclose(state.trust, 0.9 + 0.1 * ratio, rtol=1e-5)
    want = min(float(state.trust), 1) * abs(factor) / float(state.curvature)
    np.testing.assert_allclose(state.step_length, want, rtol=1e-5)


def test_trust_lost_is_not_owed():
    *_, lost, found = searched_along_one(SEARCH(decay=0.5), [1.0, -9.0, 9.0, 9.0])
    assert lost.trust == 0
    assert found.trust >= 0.5  # by the average: all of the last step, none before


def test_without_trust_there_is_still_a_step():
    _, state = searched_along_one(SEARCH(decay=0.0), [1.0, -1.0])
    assert state.trust == 0
    np.testing.assert_allclose(state.scale, 1e-3, rtol=1e-5)  # of one, the minimum


def test_curvature_is_averaged_over_those_steps_that_measure_it():
    tx = SEARCH(update_every=2, decay=0.8)
    *_, state = searched_along_one(tx, [1.0, 100.0, 4.0])
    np.testing.assert_allclose(state.curvature, (0.8 * 1 + 4) / 1.8, rtol=1e-5)


def test_a_step_whose_curvature_is_not_measured_is_at_most_twice_the_last():
    first, second = searched_along_one(SEARCH(update_every=2), [1.0, 1000.0])
    np.testing.assert_allclose(second.step_length, 2 * first.step_length, rtol=1e-5)


@pytest.mark.parametrize("update_every", [1, 3])
def test_a_quadratic_without_noise_is_trusted(update_every):
    tx = optax.chain(
        optax.scale(-1.0), SEARCH(update_every=update_every, max_step=0.1, decay=0.5)
    )
    _, state, _ = run(tx, isotropic(3.0), jnp.zeros(4), 6)
    np.testing.assert_allclose(state[1].trust, 1, rtol=1e-5)


def test_curvature_that_overflows_is_skipped_and_forgotten():
    def fun(x):
        return quadratic(x) + 2e38 * jnp.sum(x**2)

    tx, x = SEARCH(), jnp.zeros(5)
    u = -jax.grad(quadratic)(x)
    _, before = tx.update(u, tx.init(x), x, value_fn=quadratic)
    out, state = tx.update(u, before, x, value_fn=fun)
    np.testing.assert_array_equal(out, 0)
    assert state.num_skipped == 1
    kept = state._replace(num_skipped=before.num_skipped)
    jax.tree.map(np.testing.assert_array_equal, kept, before)


def test_noise_shortens_the_steps():
    """Steps to each batch's own minimum would leave an error of sigma^2."""
    run, dimension = noisy_quadratics(sigma=1.0, steps=300)
    tx = optax.chain(optax.scale(-1.0), SEARCH())
    errors, state = run(tx, jnp.full(dimension, 10.0))
    assert errors[10] < 1.5  # from 100: the way there is not slowed down
    assert errors[-100:].mean() < 0.1
    assert state[1].trust < 0.1


def test_overshooting_shortens_the_steps_too():
    """A function whose curvature grows along the step, far from its quadratic model."""

    def fun(x):
        return jnp.sum(jnp.abs(x)) ** 1.2 + jnp.sum(x**2)

    tx = optax.chain(optax.scale(-1.0), SEARCH(decay=0.5))
    _, state, _ = run(tx, fun, jnp.array([3.0, -2.0]), 20)
    assert state[1].trust < 0.9


@pytest.mark.parametrize("pass_grad", [True, False])
def test_curvature_is_measured_every_few_steps(pass_grad):
    tx = SEARCH(update_every=3)
    x = jnp.zeros(5)
    state = tx.init(x)
    calls, curvatures, lengths = [], [], []

    def counted(x):
        calls.append(1)
        return quadratic(x)

    def step(x, state):
        g = jax.grad(quadratic)(x)
        extra = {"grad": g} if pass_grad else {}
        updates, state = tx.update(-g, state, x, value_fn=counted, **extra)
        return optax.apply_updates(x, updates), state

    step = jax.jit(step)
    for _ in range(7):
        x, state = step(x, state)
        curvatures.append(float(state.curvature))
        lengths.append(float(state.step_length))
    assert len(calls) == (1 if pass_grad else 2)  # traced once a branch
    assert curvatures[0] == curvatures[1] == curvatures[2] != curvatures[3]
    assert curvatures[3] == curvatures[4] == curvatures[5] != curvatures[6]
    assert all(lengths[i] <= 2.001 * lengths[i - 1] for i in (1, 2, 4, 5))


def test_passing_the_gradient_changes_nothing():
    tx = SEARCH(update_every=3)
    x = jnp.zeros(5)
    with_grad = without = tx.init(x)
    for _ in range(5):
        g = jax.grad(quadratic)(x)
        out, with_grad = tx.update(-g, with_grad, x, value_fn=quadratic, grad=g)
        other, without = tx.update(-g, without, x, value_fn=quadratic)
        np.testing.assert_allclose(out, other, rtol=1e-5)
        x = x + out


@pytest.mark.parametrize("update_every", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_recovers_from_a_loss_that_is_not_finite(bad, update_every):
    tx = optax.chain(optax.scale(-1.0), SEARCH(update_every=update_every))
    x = jnp.zeros(5)
    state = tx.init(x)
    for step in range(6):
        fun = (lambda x: bad * quadratic(x)) if step == 3 else quadratic
        before = state[1]
        updates, state = tx.update(jax.grad(quadratic)(x), state, x, value_fn=fun)
        if step == 3:
            np.testing.assert_array_equal(updates, np.zeros(5))
            kept = state[1]._replace(num_skipped=before.num_skipped)
            jax.tree.map(np.testing.assert_array_equal, kept, before)
        else:
            assert np.isfinite(updates).all()
            assert np.abs(updates).max() > 0
        x = optax.apply_updates(x, updates)
    assert (state[1].count, state[1].num_skipped) == (5, 1)
    assert quadratic(x) < quadratic(jnp.zeros(5))


def test_no_update_no_change():
    tx = SEARCH()
    x = jnp.zeros(5)
    _, state = tx.update(-jax.grad(quadratic)(x), tx.init(x), x, value_fn=quadratic)
    out, after = tx.update(x, state, x, value_fn=quadratic)
    np.testing.assert_array_equal(out, x)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_without_any_curvature_only_a_greatest_step_helps():
    x = jnp.zeros(2)
    u = jnp.array([3.0, 4.0])
    out, state = SEARCH().update(u, SEARCH().init(x), x, value_fn=jnp.sum)
    np.testing.assert_array_equal(out, x)
    assert state.num_skipped == 1
    bounded = SEARCH(max_step=2.5)
    out, state = bounded.update(u, bounded.init(x), x, value_fn=jnp.sum)
    np.testing.assert_allclose(out, u / 2)
    assert state.num_skipped == 0


def test_a_step_that_overflows_is_none():
    """In float16, of which it takes little: here it would be a million."""

    def fun(x):
        return jnp.sum(x + jnp.float16(5e-7) * x**2)

    tx, x = SEARCH(), jnp.ones(2, jnp.float16)
    u = -jax.grad(fun)(x)
    updates, state = tx.update(u, tx.init(x), x, value_fn=fun)
    np.testing.assert_array_equal(updates, 0)
    assert (state.count, state.num_skipped) == (0, 1)
    updates, state = SEARCH(max_step=1.0).update(u, state, x, value_fn=fun)
    assert (state.count, state.num_skipped) == (1, 1)
    np.testing.assert_allclose(updates, -(0.5**0.5), rtol=1e-3)


def test_the_greatest_step_is_kept():
    tx = SEARCH(max_step=1e-3)
    x = jnp.zeros(5)
    out, state = tx.update(-jax.grad(quadratic)(x), tx.init(x), x, value_fn=quadratic)
    np.testing.assert_allclose(jnp.linalg.norm(out), 1e-3, rtol=1e-5)
    np.testing.assert_allclose(state.step_length, 1e-3, rtol=1e-5)


@pytest.mark.parametrize("update_every", [1, 3])
def test_a_complex_parameter_stands_for_two_real_ones(update_every):
    def fun(z):
        return jnp.sum(jnp.abs(z - (1 + 2j)) ** 4 + z.real**2 * z.imag)

    def real_fun(s):
        return fun(jax.lax.complex(s[0], s[1]))

    tx = optax.chain(optax.scale(-1.0), SEARCH(update_every=update_every))
    z = jnp.array([0.5 + 1j, -0.2 - 0.3j])
    s = jnp.stack([z.real, z.imag])
    state, real_state = tx.init(z), tx.init(s)
    for _ in range(4):
        grad = jax.grad(fun)(z)
        updates, state = tx.update(jnp.conj(grad), state, z, value_fn=fun, grad=grad)
        z = optax.apply_updates(z, updates)
        updates, real_state = tx.update(
            jax.grad(real_fun)(s), real_state, s, value_fn=real_fun
        )
        s = optax.apply_updates(s, updates)
        np.testing.assert_allclose(z, jax.lax.complex(s[0], s[1]), rtol=1e-4)


@pytest.mark.parametrize("update_every", [1, 2])
@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float32", "float64", "complex64", "complex128"]
)
def test_types_are_kept(dtype, update_every):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        tx = SEARCH(update_every=update_every)
        params = {"w": jnp.ones((3, 2), dtype), "b": jnp.ones((), dtype)}
        init = tx.init(params)

        def fun(p):
            return sum(jnp.sum(jnp.abs(x) ** 2) for x in jax.tree.leaves(p))

        def step(state, _):
            updates, state = tx.update(
                params, state, params, value_fn=fun, surprise=1, hessian_diagonal=None
            )
            return state, updates

        state, updates = jax.jit(lambda s: jax.lax.scan(step, s, None, length=3))(init)
        assert types(state) == types(init)
        assert types(jax.tree.map(lambda u: u[0], updates)) == types(params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        assert state.count == 3
        wide = "float64" if dtype in ("float64", "complex128") else "float32"
        assert state.curvature.dtype == wide


def test_donation_no_aliasing_and_abstract_init():
    tx = SEARCH()
    x = jnp.ones(5)
    state = tx.init(x)
    abstract = jax.eval_shape(tx.init, x)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    step = jax.jit(
        lambda g, s, p: tx.update(g, s, p, value_fn=quadratic), donate_argnums=1
    )
    step(x, state, x)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_numbers_may_be_injected():
    plain = SEARCH(update_every=2, damping=0.1)
    injected = optax.inject_hyperparams(SEARCH)(update_every=2, damping=0.1)
    x = jnp.zeros(5)
    state, other = plain.init(x), injected.init(x)
    for _ in range(3):
        u = -jax.grad(quadratic)(x)
        want, state = plain.update(u, state, x, value_fn=quadratic)
        got, other = injected.update(u, other, x, value_fn=quadratic)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        x = x + want


def test_vmapped_lane_equals_the_single_run():
    tx = optax.chain(optax.scale(-1.0), SEARCH(update_every=2))

    def fun(x):
        return jnp.sum(jnp.cosh(x)) + x[0] * x[1]

    starts = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    lanes = jax.vmap(lambda x: run(tx, fun, x, 4)[0])(starts)
    for lane, start in zip(lanes, starts, strict=True):
        np.testing.assert_allclose(lane, run(tx, fun, start, 4)[0], rtol=1e-4)


@pytest.mark.parametrize("mode", ["jit", "shard_map"])
def test_a_sharded_batch_gives_the_global_step(mode):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    inputs = jax.random.normal(jax.random.key(0), (16, 3))
    tx = optax.chain(optax.scale(-1.0), SEARCH())
    x = jnp.array([1.0, -1.0, 0.5])

    def step(x, state, inputs, mean=lambda loss: loss):
        def fun(x):
            return mean(jnp.mean(jnp.cosh(inputs @ x)))

        updates, state = tx.update(jax.grad(fun)(x), state, x, value_fn=fun)
        return optax.apply_updates(x, updates), state

    want = want_state = None
    want, want_state = x, tx.init(x)
    for _ in range(3):
        want, want_state = jax.jit(step)(want, want_state, inputs)

    if mode == "jit":
        inputs = jax.device_put(inputs, NamedSharding(mesh, P("batch")))
        parallel = jax.jit(step)
    else:
        parallel = jax.jit(
            jax.shard_map(
                lambda *args: step(*args, mean=lambda v: jax.lax.pmean(v, "batch")),
                mesh=mesh,
                in_specs=(P(), P(), P("batch")),
                out_specs=P(),
            )
        )
    got, state = x, tx.init(x)
    for _ in range(3):
        got, state = parallel(got, state, inputs)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_allclose(state[1].trust, want_state[1].trust, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"update_every": 0}, ValueError, "`update_every` must be an integer"),
        ({"decay": 1.0}, ValueError, r"`decay` must be a number in \[0, 1\)"),
        ({"damping": -0.1}, ValueError, "`damping` must be a number"),
        ({"max_step": 0.0}, ValueError, "`max_step` must be a number"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        SEARCH(**options)


def test_missing_arguments_of_update_are_named():
    tx = SEARCH()
    x = jnp.zeros(5)
    with pytest.raises(ValueError, match="curvature_line_search needs `params`"):
        tx.update(x, tx.init(x), value_fn=quadratic)
    with pytest.raises(ValueError, match="curvature_line_search needs `value_fn`"):
        tx.update(x, tx.init(x), x)
