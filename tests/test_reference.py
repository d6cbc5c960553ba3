"""The authors' optimizer against traces of their own code."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg

GOLDEN = pathlib.Path(__file__).parent / "golden" / "ml_ncg_traces.npz"
STEPS = 60


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def trace_keys():
    with np.load(GOLDEN) as file:
        names = [name for name in file.files if name.endswith("/x")]
    return sorted(name.removeprefix("traces/").removesuffix("/x") for name in names)


KEYS = trace_keys()


def value_and_grad(golden, problem):
    """The problem's loss and gradient at step t."""
    if problem == "A":

        def loss(x, t):
            r = x - golden["A_xstar"]
            return 0.5 * r @ (golden["A_mat"] @ r)

    else:
        index = jnp.asarray(golden["B_idx"], jnp.int32)
        data, labels = jnp.asarray(golden["B_X"]), jnp.asarray(golden["B_y"])

        def loss(x, t):
            w, logits = x[:30], data[index[t]] @ x[:30] + x[30]
            fit = jnp.mean(jax.nn.softplus(logits) - labels[index[t]] * logits)
            return fit + 0.5 * float(golden["B_l2"]) * w @ w

    return jax.value_and_grad(loss)


def run(tx, golden, key):
    """Parameters after each step, the scale after each step, the final state."""
    problem = key[0]
    fn = value_and_grad(golden, problem)
    x = jnp.asarray(golden[f"{problem}_x0"], jnp.float32)

    def step(carry, t):
        x, state = carry
        value, grads = fn(x, t)
        updates, state = tx.update(grads, state, x, value=value)
        x = optax.apply_updates(x, updates)
        return (x, state), (x, optax.tree.get(state, "scale", jnp.ones(())))

    (_, state), (xs, scales) = jax.lax.scan(step, (x, tx.init(x)), jnp.arange(STEPS))
    return np.asarray(xs), np.asarray(scales), state


def column(golden, key, name):
    index = list(golden["scal_fields"]).index(name)
    return golden[f"traces/{key}/scal"][:, index]


def relative_errors(xs, golden, key):
    want = golden[f"traces/{key}/x"]
    return np.linalg.norm(xs - want, axis=1) / np.linalg.norm(want, axis=1)


@pytest.mark.parametrize("key", KEYS)
def test_golden_trace(golden, key):
    _, rule, precondition, search, threshold, _ = key.split("/")
    lr = jnp.asarray(column(golden, key, "lr"))
    tx = optax_nlcg.reference.ml_ncg(
        lambda count: lr[count],
        update_rule=rule,
        precondition=precondition,
        line_search=search,
        threshold=float(threshold.removeprefix("thr")),
    )
    xs, scales, state = run(tx, golden, key)
    assert relative_errors(xs, golden, key).max() < 1e-5
    np.testing.assert_array_equal(scales, column(golden, key, "base_lr"))
    np.testing.assert_allclose(state.gz, column(golden, key, "rtd")[-1], rtol=2e-2)
    if precondition == "Bfgs":
        want = golden[f"traces/{key}/h_final"]
        np.testing.assert_allclose(state.diagonal, want, rtol=2e-3)


def test_traces_exercise_the_line_searches(golden):
    cut = [key for key in KEYS if column(golden, key, "base_lr").min() < 0.5]
    assert len(cut) >= 3


@pytest.mark.parametrize("key", [key for key in KEYS if "/None/thr" in key])
def test_stages_follow_the_same_path_without_line_search(golden, key):
    tx = optax_nlcg.nlcg(
        float(column(golden, key, "lr")[0]),
        preconditioner=None if "/Bfgs/" in key else optax.identity(),
        line_search=optax.identity(),
    )
    xs, _, _ = run(tx, golden, key)
    assert relative_errors(xs, golden, key).max() < 1e-4


def test_base_read_end_differs(golden):
    key = "B/FR/Bfgs/Step/thr1/const"
    lr = float(column(golden, key, "lr")[0])
    xs, scales, _ = run(optax_nlcg.reference.ml_ncg(lr, base_read="end"), golden, key)
    # The size of the difference is the one measured between the two readings of the
    # authors' graph: 1.5 to 16 percent.
    assert 0.01 < relative_errors(xs, golden, key).max() < 0.2
    assert scales.min() < 0.5


def test_polak_ribiere_uses_the_previous_preconditioned_gradient():
    tx = optax_nlcg.reference.ml_ncg(
        0.1, update_rule="PR", precondition="None", line_search="None"
    )
    g0, g1 = jnp.array([1.0, 2.0]), jnp.array([-0.5, 2.5])
    state = tx.init(g0)
    u0, state = tx.update(g0, state)
    u1, state = tx.update(g1, state)
    beta = float(g1 @ (g1 - g0)) / float(g0 @ g0)
    np.testing.assert_allclose(u0, -0.1 * g0, rtol=1e-6)
    np.testing.assert_allclose(state.beta, beta, rtol=1e-6)
    np.testing.assert_allclose(u1, -0.1 * (g1 + beta * g0), rtol=1e-6)


def test_lars_ignores_unknown_arguments():
    tx, x = optax_nlcg.reference.scale_by_lars(), jnp.ones(2)
    want, _ = tx.update(x, tx.init(x), x)
    got, _ = tx.update(x, tx.init(x), x, value=1.0, batch=3)
    np.testing.assert_array_equal(got, want)


def test_lars_comes_before_the_direction():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 3)), "zero": np.zeros(3)}
    grads = {"w": rng.normal(size=(4, 3)), "zero": rng.normal(size=3)}
    params, grads = jax.tree.map(jnp.asarray, (params, grads))
    w, g = np.linalg.norm(params["w"]), np.linalg.norm(grads["w"])
    rate = 0.001 * w / (g + 1e-8 + 0.1 * 0.001 * w)
    tx = optax_nlcg.reference.ml_ncg(2.0, lars_lr=0.001)
    updates, _ = tx.update(grads, tx.init(params), params, value=1.0)
    np.testing.assert_allclose(updates["w"], -2.0 * rate * grads["w"], rtol=1e-5)
    np.testing.assert_array_equal(updates["zero"], 0)


@pytest.mark.parametrize("rule", ["FR", "PR"])
def test_the_first_step_is_along_the_gradient(rule):
    with jax.enable_x64(True):
        tx, g = optax_nlcg.reference.ml_ncg(0.5, update_rule=rule), jnp.array([1.0, 3])
        updates, state = tx.update(g, tx.init(g), value=1.0)
        np.testing.assert_allclose(updates, -0.5 * g, rtol=1e-12)
        assert state.beta == 0


@pytest.mark.parametrize("search", ["Step", "Online"])
def test_a_learning_rate_of_zero_gives_no_step_also_where_the_loss_rises(search):
    tx = optax_nlcg.reference.ml_ncg(
        lambda count: 0.1 * (count == 0), line_search=search, period=2
    )
    x = jnp.ones(2)
    state = tx.init(x)
    for loss in (1.0, 10.0, 100.0):
        updates, state = tx.update(x, state, x, value=loss)
    assert state.scale < 1
    np.testing.assert_array_equal(updates, 0)


@pytest.mark.parametrize("search", ["Step", "Online"])
def test_a_loss_that_stays_zero_leaves_the_scale(search):
    tx = optax_nlcg.reference.ml_ncg(0.1, line_search=search, period=1)
    x = jnp.ones(2)
    state = tx.init(x)
    for _ in range(4):
        _, state = tx.update(x, state, x, value=0.0)
    assert state.scale == 1
