"""What training throws at an optimizer: it goes on, and says what it has skipped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_nlcg
from tests import cases

NUM_STEPS = 24
STATELESS = ("lars",)
"""Like Optax's stateless transformations it hands on what it is given."""

NAMES = [name for name in cases.OPTIMIZERS if name not in STATELESS]


def num_skipped(state):
    found = optax.tree.get_all_with_path(state, "num_skipped")
    return sum(int(value) for _, value in found)


@functools.cache
def spoiled_step(name):
    """A step with factors on the gradient, the loss, and the loss that is called."""
    tx = cases.OPTIMIZERS[name]()

    def step(params, state, factors):
        value, grads = jax.value_and_grad(cases.loss)(params)
        grads = optax.tree.scale(factors["grad"], grads)
        extra = cases.extra_args(
            name,
            params,
            factors["value"] * value,
            grads,
            lambda p: factors["value_fn"] * cases.loss(p),
        )
        if "hessian_diagonal" in extra:
            extra["hessian_diagonal"] = optax.tree.scale(
                factors["diagonal"], extra["hessian_diagonal"]
            )
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    return tx, cases.jit(step)


def spoiled_run(name, what, bad, at, steps=NUM_STEPS, params=None):
    """Trains with other factors than one in some steps; losses, state, parameters."""
    tx, step = spoiled_step(name)
    params = cases.params_of() if params is None else params
    state, losses = tx.init(params), []
    ones = {key: np.float32(1) for key in ("grad", "value", "value_fn", "diagonal")}
    for i in range(steps):
        factors = ones | {key: np.float32(bad) for key in what if i in at}
        params, state, value = step(params, state, factors)
        losses.append(float(value))
    return np.array(losses), state, params


EVENTS = {
    "gradient": ("grad",),
    "loss": ("value",),
    "called loss": ("value_fn",),
    "everything": ("grad", "value", "value_fn", "diagonal"),
}


@pytest.mark.parametrize("at", [(0,), (1,), (5, 6)], ids=["first", "second", "middle"])
@pytest.mark.parametrize(
    ("event", "bad"), [*((event, np.nan) for event in EVENTS), ("everything", np.inf)]
)
@pytest.mark.parametrize("name", NAMES)
def test_training_recovers(name, event, bad, at):
    losses, state, _ = spoiled_run(name, EVENTS[event], bad, at)
    assert np.isfinite(losses).all()
    assert losses[-1] < (0.7 if "lars" in name else 1e-2) * losses[0]
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    searches_loss = name in ("step", "online")
    if event == "everything" or (event == "gradient" and not searches_loss):
        assert num_skipped(state) >= len(at)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("number", [1, 20])
@pytest.mark.parametrize("name", ["nlcg", "ml_ncg"])
def test_a_loss_that_is_not_finite_is_as_if_it_had_not_been(name, number, bad):
    """With a finite gradient, which must not be taken into the direction."""
    at = range(3, 3 + number)
    losses, state, params = spoiled_run(name, ("value",), bad, at, steps=10 + number)
    expected, _, same = spoiled_run(name, (), 1, (), steps=10)
    np.testing.assert_array_equal(np.delete(losses, at), expected)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert num_skipped(state) >= number


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diagonal_that_is_not_finite_is_counted(bad):
    losses, state, _ = spoiled_run("diagonal_given", ("diagonal",), bad, (0, 5))
    assert losses[-1] < 1e-3 * losses[0]
    assert num_skipped(state) == 2


def test_stateless_scaling_hands_on_what_it_is_given():
    losses, _, _ = spoiled_run("lars", ("grad",), np.nan, (5,))
    assert np.isnan(losses[-1])


def test_orthogonalization_alone_is_to_be_wrapped():
    """As docs/wrappers.md says: an average of squares keeps a NaN for good."""
    x, bad = jnp.ones(3), jnp.asarray([1.0, np.nan, 1.0])
    alone = optax_nlcg.scale_by_orthogonalization()
    wrapped = optax.apply_if_finite(alone, max_consecutive_errors=9)
    for tx, finite in (alone, False), (wrapped, True):
        _, state = tx.update(bad, tx.init(x), x)
        z, _ = tx.update(x, state, x)
        assert np.isfinite(z).all() == finite


@pytest.mark.parametrize("name", ["nlcg", "ml_ncg", "nonlinear_cg"])
def test_every_skipped_step_is_counted_and_changes_nothing(name):
    """Also where nothing else ever comes: a run that has exploded shows it."""
    losses, state, _ = spoiled_run(name, EVENTS["everything"], np.nan, range(NUM_STEPS))
    assert (losses == losses[0]).all()
    # Each stage counts for itself.
    assert num_skipped(state) in (NUM_STEPS, 2 * NUM_STEPS, 3 * NUM_STEPS)


# Weights decay where there is no gradient too.
@pytest.mark.parametrize("name", [n for n in cases.OPTIMIZERS if n != "nlcg_decay"])
def test_zero_gradient(name):
    """At the minimum from the start, and left there."""
    start = optax.tree.ones_like(cases.params_of())
    losses, state, params = spoiled_run(name, (), 1, (), steps=3, params=start)
    jax.tree.map(np.testing.assert_array_equal, params, start)
    assert (losses == 0).all()
    assert num_skipped(state) == 0


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("name", NAMES)
def test_squares_that_do_not_fit(name, factor):
    """Gradients whose squares leave float32 are skipped, or taken as they are."""
    losses, state, _ = spoiled_run(name, EVENTS["everything"], factor, (2,))
    if factor < 1 or name not in ("bfgs", "step", "online"):
        assert np.isfinite(losses).all()
        assert losses[-1] < (0.9 if "lars" in name else 0.1) * losses[0]
        assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    else:  # no conjugate direction, no inner product that could tell
        assert losses[-1] > losses[0]


@pytest.mark.parametrize(
    "name", ["curvature", "hager_zhang", "ml_ncg", "direction", "direction_hz", "nlcg"]
)
def test_nothing_is_nan_on_the_way(name):
    """What JAX's search for NaNs finds is the user's: outside `jit` it sees all."""
    tx, params = cases.OPTIMIZERS[name](), cases.params_of()
    step = cases.make_step(name, tx)
    with jax.debug_nans(True):
        _, state, _, _ = step(params, tx.init(params))
        step(optax.tree.ones_like(params), state)  # the minimum


RULES = list(optax_nlcg.BETA_RULES)


@pytest.mark.parametrize("rule", ["fletcher_reeves", "hager_zhang"])
def test_scales_in_double_precision(rule):
    """Loss and gradient times c, steps divided by c: the same trajectory."""
    with jax.enable_x64(True):
        params = cases.params_of("float64")
        runs = []
        for c in (1e-30, 1.0, 1e30):
            tx = optax.chain(
                optax_nlcg.scale_by_conjugate_direction(beta_rule=rule),
                optax.scale(-0.02 / c),
                optax_nlcg.scale_by_step_line_search(),
            )
            runs.append(_trajectory(tx, params, lambda p, c=c: c * cases.loss(p)))
        for run in runs[1:]:
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12),
                run,
                runs[0],
            )


def _trajectory(tx, params, fun, steps=6):
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(fun)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    return cases.jit(
        lambda params: jax.lax.scan(step, (params, tx.init(params)), None, steps)[0][0]
    )(params)


class TestFloat16:
    """Entries up to 65504: sums of two of them already overflow."""

    LARGE = jnp.full(3, 6e4, jnp.float16)

    def test_a_direction_that_overflows_starts_anew(self):
        tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=1.0)
        state = tx.init(self.LARGE)
        for _ in range(3):
            p, state = tx.update(self.LARGE, state, self.LARGE)
            np.testing.assert_array_equal(p, self.LARGE)
        assert (state.beta, state.since_restart, state.num_skipped) == (0, 1, 0)

    def test_a_wide_accumulator_must_fit_the_parameters(self):
        tx = optax_nlcg.scale_by_conjugate_direction(
            beta_rule=1.0, accumulator_dtype=jnp.float32
        )
        state = tx.init(self.LARGE)
        for _ in range(2):
            p, state = tx.update(self.LARGE, state, self.LARGE)
        np.testing.assert_array_equal(p, self.LARGE)

    def test_a_wider_gradient_that_does_not_fit_is_skipped(self):
        tx = optax_nlcg.scale_by_conjugate_direction()
        state = tx.init(self.LARGE)
        for gradient in jnp.array([[1e5, 1, 1], [1, 1, 1]]):
            p, state = tx.update(gradient, state, self.LARGE)
            np.testing.assert_array_equal(p, jnp.where(gradient.max() > 1, 0, 1))
        assert (state.count, state.num_skipped) == (1, 1)

    def test_an_estimate_that_overflows_is_kept_as_it_was(self):
        tx = optax_nlcg.scale_by_diagonal_bfgs()
        x = jnp.zeros(3, jnp.float16)
        _, state = tx.update(x, tx.init(x), x)
        # y'y / y's = 6e4 / 1e-2 is out of range.
        _, state = tx.update(self.LARGE, state, x + jnp.float16(1e-2))
        np.testing.assert_array_equal(state.diagonal, np.ones(3))

    def test_squares_of_differences_need_not_fit(self):
        tx = optax_nlcg.scale_by_diagonal_bfgs()
        x = jnp.zeros(3, jnp.float16)
        _, state = tx.update(x, tx.init(x), x)
        _, state = tx.update(x + 600, state, x + 300)
        # h - s^2 / s's + y^2 / y's
        np.testing.assert_allclose(state.diagonal, 1 - 1 / 3 + 2 / 3, rtol=1e-3)

    @pytest.mark.parametrize(
        "name",
        ["direction_hz", "diagonal_given", "nlcg", "curvature", "limited_memory_cg"],
    )
    def test_updates_stay_finite(self, name):
        """Whatever made-up gradient comes: large, of changing sign, not finite."""
        tx, params = cases.OPTIMIZERS[name](), cases.params_of("float16")

        def step(state, size):
            grads = optax.tree.full_like(params, size)
            value = cases.loss(params)
            extra = cases.extra_args(name, params, value, grads)
            updates, state = tx.update(grads, state, params, **extra)
            return state, updates

        sizes = jnp.array([1, 6e4, 6e4, -6e4, 6e4, jnp.inf, 6e4, 1e-7, 6e4, 1])
        _, updates = cases.jit(
            lambda state: jax.lax.scan(step, state, sizes.astype(jnp.float16))
        )(tx.init(params))
        for leaf in jax.tree.leaves(updates):
            assert leaf.dtype == jnp.float16
            assert jnp.all(jnp.isfinite(leaf))


def test_a_coefficient_that_overflows_starts_anew():
    """From a gradient of 1e-18 to one of 1: Fletcher-Reeves' beta is 1e36."""
    tx = optax_nlcg.scale_by_conjugate_direction()
    g = jnp.ones(3)
    state = tx.init(g)
    for gradient in (1e-18 * g, 1e2 * g, 1e18 * g, g):
        p, state = tx.update(gradient, state)
        for leaf in jax.tree.leaves((p, state)):
            assert jnp.all(jnp.isfinite(leaf))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    rule=st.sampled_from(RULES),
    exponents=st.lists(st.integers(-36, 36), min_size=6, max_size=6),
    faults=st.lists(st.sampled_from([1, 0, np.nan, np.inf]), min_size=6, max_size=6),
)
def test_the_direction_is_always_finite_and_descends(seed, rule, exponents, faults):
    """Any sequence of sizes, zeros and failures; the state survives them all."""
    rng = np.random.default_rng(seed)
    tx = optax_nlcg.scale_by_conjugate_direction(beta_rule=rule)
    state = tx.init(jnp.zeros(4))
    skipped = 0
    for exponent, fault in zip(exponents, faults, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            g = (rng.normal(size=4) * 10.0**exponent * fault).astype(np.float32)
            fits = np.isfinite(np.vdot(g, g))
        p, state = tx.update(jnp.asarray(g), state)
        skipped += not fits
        for leaf in jax.tree.leaves((p, state)):
            assert jnp.all(jnp.isfinite(leaf))
        if fits:
            assert np.vdot(g.astype(float), np.asarray(p, float)) >= 0
    assert state.num_skipped == skipped


@settings(deadline=None, max_examples=30)
@given(
    values=st.lists(
        st.one_of(
            st.floats(-(2.0**99), 2.0**99, width=32),
            st.sampled_from([np.nan, np.inf, -np.inf, 0.0]),
        ),
        min_size=8,
        max_size=8,
    ),
    online=st.booleans(),
)
def test_loss_searches_keep_their_scale_whatever_the_loss(values, online):
    make = (
        optax_nlcg.scale_by_online_line_search
        if online
        else functools.partial(optax_nlcg.scale_by_step_line_search, period=2)
    )
    tx = make()
    u = jnp.array([1.0, -2.0])
    state = tx.init(u)
    for value in values:
        updates, state = tx.update(u, state, value=np.float32(value))
        assert 1e-4 * (1 - 1e-6) <= float(state.scale) <= 1
        # Between the whole update and all of the last one taken back.
        assert float(jnp.max(jnp.abs(updates))) <= 2 * (1 + 1e-6)
        for leaf in jax.tree.leaves((updates, state)):
            assert jnp.all(jnp.isfinite(leaf))
    assert state.num_skipped == sum(not np.isfinite(v) for v in values)
