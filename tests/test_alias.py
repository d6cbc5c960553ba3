"""The complete optimizers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg
from tests import common


def rosenbrock(x):
    return jnp.sum(100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2)


@pytest.mark.parametrize("rule", ["polak_ribiere", "hager_zhang"])
def test_is_the_chain_of_its_stages(rule):
    """Also where it keeps the last gradient once, and after a step that is skipped."""
    alias = optax_nlcg.nlcg(1e-4, beta_rule=rule, beta_bounds=(0.0, 0.9))
    chain = optax.chain(
        optax_nlcg.scale_by_conjugate_direction(
            optax_nlcg.scale_by_diagonal_bfgs(), beta_rule=rule, beta_bounds=(0.0, 0.9)
        ),
        optax.scale_by_learning_rate(1e-4),
        optax_nlcg.scale_by_step_line_search(),
    )
    results = []
    with jax.enable_x64(True):
        for tx in alias, chain:
            x = jnp.array([-1.2, 1.0, 0.5, 2.0])
            x, state, _ = common.descend(tx, rosenbrock, x, 20)
            bad, state = tx.update(jnp.full(4, jnp.nan), state, x, value=1.0)
            np.testing.assert_array_equal(bad, 0)
            for _ in range(20):
                value, grads = jax.value_and_grad(rosenbrock)(x)
                updates, state = tx.update(grads, state, x, value=value)
                x = optax.apply_updates(x, updates)
            assert state[0].num_skipped == 1
            results.append((x, state[0].beta))
        # Not to the bit: how a compiler joins the stages decides on the rounding.
        np.testing.assert_allclose(*map(jnp.hstack, results), rtol=1e-12)


def test_takes_back_the_step_that_was_really_made():
    """Nlcg keeps no copy of its last update: it is the difference of the parameters."""
    search = optax_nlcg.scale_by_step_line_search(period=2)
    alias = optax_nlcg.nlcg(1.0, line_search=search)
    chain = optax.chain(
        optax_nlcg.scale_by_conjugate_direction(
            optax_nlcg.scale_by_diagonal_bfgs(), beta_bounds=(0.0, 1.0)
        ),
        optax.scale_by_learning_rate(1.0),
        search,
    )
    with jax.enable_x64(True):
        a = jnp.asarray(common.spd_matrix(np.geomspace(0.1, 3, 6)))
        got, state, _ = common.descend(alias, lambda x: x @ a @ x, jnp.ones(6), 25)
        want, kept, _ = common.descend(chain, lambda x: x @ a @ x, jnp.ones(6), 25)
        assert state[2].scale < 0.7  # it has taken steps back
        assert not jax.tree.leaves(state[2].previous_update)
        assert jax.tree.leaves(kept[2].previous_update)
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_what_follows_in_the_chain_is_part_of_the_step_taken_back():
    search = optax_nlcg.scale_by_online_line_search()
    nlcg = optax_nlcg.nlcg(0.1, line_search=search)
    tx = optax.chain(nlcg, optax.add_decayed_weights(-0.5))
    x, g = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.25])
    updates, state = tx.update(g, tx.init(x), x, value=1.0)
    after = x + updates
    # The loss rises so much that half of the scale goes and nine tenths of the step.
    updates, state = tx.update(g, state, after, value=10.0)
    by_nlcg = updates + 0.5 * after
    direction = state[0][0].direction
    want = 0.1 * 0.5 * -0.1 * direction - 0.9 * (after - x)
    np.testing.assert_allclose(by_nlcg, want, rtol=1e-5)


def test_takes_nothing_back_where_no_step_is_known():
    """Gradients that were never finite leave no parameters of a last step."""
    tx = optax_nlcg.nlcg(0.1, line_search=optax_nlcg.scale_by_online_line_search())
    x = jnp.array([1.0, 2.0])
    state = tx.init(x)
    for value in (1.0, 10.0, 100.0):
        updates, state = tx.update(jnp.full(2, jnp.nan), state, x, value=value)
        np.testing.assert_array_equal(updates, 0.0)
    assert state[2].scale < 1


def weights_and_bias():
    return {"w": jnp.array([[1.0, -2.0], [0.5, 4.0]]), "b": jnp.array([3.0, -1.0])}


def loss_of(params):
    return jnp.sum((params["w"] - 1) ** 2) + jnp.sum(params["b"] ** 4) / 4


def is_matrix(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


@pytest.mark.parametrize("mask", [None, {"w": True, "b": False}, is_matrix])
def test_weight_decay_is_adamws(mask):
    """Adam's metric with nothing of the past is AdamW without its first average."""
    schedule = optax.linear_schedule(0.1, 0.01, 20)
    ours = optax_nlcg.nlcg(
        schedule,
        beta_rule=0.0,
        preconditioner=optax.scale_by_rms(
            0.99, eps_in_sqrt=False, bias_correction=True
        ),
        line_search=optax.identity(),
        weight_decay=0.3,
        mask=mask,
    )
    adamw = optax.adamw(schedule, b1=0.0, b2=0.99, weight_decay=0.3, mask=mask)
    got, *_ = common.descend(ours, loss_of, weights_and_bias(), 20)
    want, *_ = common.descend(adamw, loss_of, weights_and_bias(), 20)
    chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_weight_decay_comes_before_the_rate_and_the_search():
    """So the search cuts it with the rest, and takes it back with the rest."""
    search = optax_nlcg.scale_by_online_line_search()
    alias = optax_nlcg.nlcg(0.3, line_search=search, weight_decay=0.1)
    chain = optax.chain(
        optax_nlcg.scale_by_conjugate_direction(
            optax_nlcg.scale_by_diagonal_bfgs(), beta_bounds=(0.0, 1.0)
        ),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(0.3),
        search,
    )
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(float), weights_and_bias())
        got, state, _ = common.descend(alias, loss_of, params, 30)
        want, *_ = common.descend(chain, loss_of, params, 30)
        assert state[2].scale < 0.9  # it has cut
        chex.assert_trees_all_close(got, want, rtol=1e-9)


def test_no_weights_decay_in_a_step_that_is_skipped():
    tx = optax_nlcg.nlcg(0.1, weight_decay=0.5)
    params = weights_and_bias()
    state = tx.init(params)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    updates, state = tx.update(bad, state, params, value=1.0)
    assert not any(jnp.any(u) for u in jax.tree.leaves(updates))
    zero = optax.tree.zeros_like(params)
    updates, _ = tx.update(zero, state, params, value=1.0)
    want = jax.tree.map(lambda x: -0.05 * x, params)
    chex.assert_trees_all_close(updates, want, rtol=1e-6)


def test_weight_decay_can_be_injected():
    """As a schedule, for instance."""
    fixed = optax_nlcg.nlcg(0.1, weight_decay=0.25, mask=is_matrix)
    tx = optax.inject_hyperparams(optax_nlcg.nlcg, static_args=("mask",))(
        0.1, weight_decay=lambda count: 0.25, mask=is_matrix
    )
    got, state, _ = common.descend(tx, loss_of, weights_and_bias(), 5)
    want, *_ = common.descend(fixed, loss_of, weights_and_bias(), 5)
    assert state.hyperparams["weight_decay"] == 0.25
    chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_beats_gradient_descent_at_the_same_learning_rate():
    a = jnp.asarray(common.spd_matrix(np.geomspace(1e-3, 1, 20)), jnp.float32)
    x = jnp.ones(20)
    _, _, plain = common.descend(optax.sgd(0.2), lambda x: x @ a @ x, x, 200)
    _, _, conjugate = common.descend(optax_nlcg.nlcg(0.2), lambda x: x @ a @ x, x, 200)
    assert conjugate[-1] < 0.1 * plain[-1]


@pytest.mark.parametrize(
    "preconditioner",
    [
        optax.identity(),
        optax_nlcg.scale_by_diagonal_bfgs(),
        optax.scale_by_rms(),
        optax.clip_by_global_norm(1.0),
    ],
    ids=["identity", "bfgs", "rms", "clip"],
)
@pytest.mark.parametrize(
    "line_search",
    [
        optax.identity(),
        optax_nlcg.scale_by_step_line_search(),
        optax_nlcg.scale_by_online_line_search(),
        optax_nlcg.scale_by_step_line_search(rollback=False),
    ],
    ids=["none", "step", "online", "no_rollback"],
)
def test_any_parts_fit_together(preconditioner, line_search):
    tx = optax_nlcg.nlcg(0.02, preconditioner=preconditioner, line_search=line_search)
    a = jnp.asarray(common.spd_matrix(np.geomspace(0.1, 3, 6)), jnp.float32)
    _, _, losses = common.descend(tx, lambda x: x @ a @ x, jnp.ones(6), 100)
    assert losses[-1] < 0.3 * losses[0]


def test_optax_line_search_in_the_last_place():
    tx = optax_nlcg.nlcg(
        1.0,
        preconditioner=optax.identity(),
        line_search=optax.scale_by_backtracking_linesearch(20),
    )

    def step(carry, _):
        x, state = carry
        value, grads = jax.value_and_grad(rosenbrock)(x)
        updates, state = tx.update(
            grads, state, x, value=value, grad=grads, value_fn=rosenbrock
        )
        return (optax.apply_updates(x, updates), state), None

    x = jnp.array([-1.2, 1.0])
    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=100)
    assert rosenbrock(x) < 0.1


def test_schedule():
    tx = optax_nlcg.nlcg(lambda count: 0.1 * (count < 2), line_search=optax.identity())
    x = jnp.ones(2)
    state = tx.init(x)
    for t in range(4):
        updates, state = tx.update(x, state, x)
        assert bool(jnp.any(updates != 0)) == (t < 2)


def test_inject_hyperparams():
    with jax.enable_x64(True):  # for 40 steps amplify what is rounded
        injected = optax.inject_hyperparams(optax_nlcg.nlcg)(learning_rate=2e-4)
        x = jnp.array([-1.2, 1.0, 0.5, 2.0])
        got, _, _ = common.descend(injected, rosenbrock, x, 40)
        want, _, _ = common.descend(optax_nlcg.nlcg(2e-4), rosenbrock, x, 40)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    ("parts", "copies"),
    [
        ({"preconditioner": optax.identity(), "line_search": optax.identity()}, 1),
        (
            {
                "preconditioner": optax_nlcg.scale_by_hessian_diagonal(),
                "line_search": optax.identity(),
            },
            2,
        ),
        ({}, 4),
        ({"beta_rule": "hager_zhang"}, 4),
        ({"beta_rule": "polak_ribiere", "line_search": optax.identity()}, 4),
    ],
    ids=["fletcher_reeves", "hessian_diagonal", "default", "hager_zhang", "no_search"],
)
def test_memory_in_copies_of_the_parameters(parts, copies):
    params = {"w": jnp.zeros((30, 40)), "b": jnp.zeros(40)}
    state = optax_nlcg.nlcg(0.1, **parts).init(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    stored = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert stored // size == copies


@pytest.mark.parametrize(
    ("solver", "copies"),
    [
        (optax_nlcg.nonlinear_cg(), 3),
        (optax_nlcg.limited_memory_cg(), 23),
        (optax_nlcg.limited_memory_cg(memory_size=2), 7),
    ],
)
def test_memory_of_the_full_batch_solvers(solver, copies):
    state = solver.init(jnp.zeros(1000))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) // 1000 == copies


def test_restarts_after_six_cycles_by_default():
    tx = optax_nlcg.nonlinear_cg(beta_rule=0.1, line_search=optax.identity())
    state, lengths = tx.init(jnp.ones(2)), []
    for _ in range(14):
        _, state = tx.update(jnp.ones(2), state)
        lengths.append(int(state[0].since_restart))
    assert lengths == [*range(1, 13), 1, 2]


@pytest.mark.parametrize("preconditioner", [None, optax.identity()])
def test_leaves_of_integers_stay_as_under_optax(preconditioner):
    params = {"w": jnp.ones(3), "table": jnp.arange(3)}
    grads = {"w": jnp.arange(3.0), "table": jnp.zeros(3, jnp.int32)}
    optimizer = optax_nlcg.nlcg(0.1, preconditioner=preconditioner)
    alone = optax_nlcg.nlcg(0.1, preconditioner=preconditioner)
    state, other = optimizer.init(params), alone.init(params["w"])
    x = params["w"]
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
        updates, other = alone.update(grads["w"], other, x, value=1.0)
        x = optax.apply_updates(x, updates)
    np.testing.assert_array_equal(params["table"], np.arange(3))
    np.testing.assert_allclose(params["w"], x, rtol=1e-6)
