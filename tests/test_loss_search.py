"""The line searches that watch the loss, against a statement of them in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg

EDGES = [0.01, 0.025, 0.05, 0.075, 0.10, 0.125, 0.15]
FACTORS = [None, 1.0, 0.975, 0.95, 0.9, 0.8, 0.7, 0.5]
FRACTIONS = [0.0, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]


class Search:
    """The search as algorithm, one number at a time."""

    def __init__(self, kind, period=5, threshold=1.0, rollback=True):
        self.kind, self.period, self.tau = kind, period, threshold
        self.rollback, self.t, self.c, self.old = rollback, 0, 1.0, 0.0

    def step(self, u, loss):
        band = None
        if self.t == 0:
            self.e = self.reference = loss
        else:
            self.e = 0.7 * self.e + 0.3 * loss
            ratio = None
            if self.kind == "online":
                ratio, growth = loss / self.e, 1.02
            elif self.t % self.period == 0:
                ratio, growth = self.e / self.reference, 1.05
                self.reference = self.e
            if ratio is not None:
                band = sum(ratio > 1 + self.tau * edge for edge in EDGES)
        self.t += 1
        fraction = 0.0
        if band == 0:
            self.c = min(1.0, growth * self.c)
        elif band:
            self.c = max(1e-4, FACTORS[band] * self.c)
            fraction = FRACTIONS[band] if self.rollback else 0.0
        self.old = (1 - fraction) * self.c * u - fraction * self.old
        return self.old, band


SEARCHES = {
    "step": optax_nlcg.scale_by_step_line_search,
    "online": optax_nlcg.scale_by_online_line_search,
}


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("threshold", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("rollback", [True, False])
def test_against_numpy(kind, threshold, rollback):
    rng = np.random.default_rng(0)
    tx = SEARCHES[kind](threshold=threshold, rollback=rollback)
    want = Search(kind, threshold=threshold, rollback=rollback)
    state, bands = tx.init(jnp.zeros(1)), set()
    update = jax.jit(tx.update)
    loss = 10.0
    for _ in range(400):
        loss = max(0.5, loss * np.exp(0.12 * rng.normal()))
        u = rng.normal()
        got, state = update(jnp.array([u]), state, value=loss)
        out, band = want.step(u, loss)
        bands.add(band)
        np.testing.assert_allclose(got[0], out, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(state.scale, want.c, rtol=1e-4)
    assert {None, 0, 1, 2, 3, 4} <= bands


@pytest.mark.parametrize("kind", SEARCHES)
def test_takes_back_a_fraction_of_what_was_applied(kind):
    # With the learning rate changing at every step, and the search last.
    tx = optax.chain(
        optax.scale_by_learning_rate(lambda count: 0.5 / (1 + count)),
        SEARCHES[kind](**({"period": 2} if kind == "step" else {})),
    )
    x, g = jnp.zeros(1), jnp.ones(1)
    state, applied = tx.init(x), 0.0
    for t, loss in enumerate([1.0, 1.0, 10.0]):
        updates, state = tx.update(g, state, x, value=loss)
        if t == 2:  # far above every edge: half the scale, nine tenths taken back
            lr = 0.5 / 3
            want = -(1 - 0.9) * 0.5 * lr - 0.9 * applied
            np.testing.assert_allclose(updates[0], want, rtol=1e-6)
        applied = float(updates[0])


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_shift_of_sign_does_not_turn_rises_into_falls(kind):
    tx = SEARCHES[kind](**({"period": 1} if kind == "step" else {}))
    state = tx.init(jnp.zeros(1))
    for loss in [-10.0, -5.0]:  # a rise
        _, state = tx.update(jnp.ones(1), state, value=loss)
    assert state.scale < 1


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_skips_losses_that_are_not_finite(kind, bad):
    tx = SEARCHES[kind]()
    state = tx.init(jnp.zeros(2))
    _, state = tx.update(jnp.ones(2), state, value=1.0)
    updates, skipped = tx.update(jnp.ones(2), state, value=bad)
    np.testing.assert_array_equal(updates, 0)
    assert skipped.num_skipped == 1
    kept = state._replace(num_skipped=skipped.num_skipped)
    jax.tree.map(np.testing.assert_array_equal, skipped, kept)


@pytest.mark.parametrize("kind", SEARCHES)
def test_first_loss_not_finite(kind):
    tx = SEARCHES[kind]()
    _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=jnp.nan)
    updates, state = tx.update(jnp.ones(2), state, value=3.0)
    np.testing.assert_array_equal(updates, 1.0)
    assert state.loss_average == 3.0


def test_a_rise_from_a_loss_of_zero_counts_as_it_is():
    tx = optax_nlcg.scale_by_step_line_search(period=1)
    for rise, cut in ((1e-3, False), (1.0, True)):
        state = tx.init(jnp.zeros(1))
        for loss in (0.0, rise):
            _, state = tx.update(jnp.ones(1), state, value=loss)
        assert (state.scale < 1) == cut


def test_scale_has_a_floor():
    tx = optax_nlcg.scale_by_step_line_search(period=1, min_scale=0.3)
    state = tx.init(jnp.zeros(1))
    for t in range(10):
        _, state = tx.update(jnp.ones(1), state, value=10.0**t)
    np.testing.assert_allclose(state.scale, 0.3)


def test_rescues_a_learning_rate_that_is_too_large():
    def fun(x):
        return jnp.sum(jnp.array([1.0, 10.0]) * x**2)

    def final_loss(line_search):
        tx = optax.chain(optax.sgd(0.11), line_search)
        x = jnp.ones(2)
        state = tx.init(x)
        for _ in range(80):
            value, grads = jax.value_and_grad(fun)(x)
            updates, state = tx.update(grads, state, x, value=value)
            x = optax.apply_updates(x, updates)
        return float(fun(x))

    assert final_loss(optax.identity()) > 1e6
    assert final_loss(optax_nlcg.scale_by_step_line_search()) < 1.0
