"""The optimizers inside Optax's wrappers: what docs/wrappers.md says of each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_nlcg
from tests import cases

OPTIMIZERS = {
    # What one step needs beyond gradient and parameters: the loss; the loss as a
    # function, for curvature; both and the gradient, for a search that tries steps.
    "nlcg": lambda: optax_nlcg.nlcg(0.1),
    "curvature": lambda: optax_nlcg.nlcg(
        0.1,
        preconditioner=optax_nlcg.scale_by_hessian_diagonal(update_every=2),
        line_search=optax_nlcg.scale_by_curvature_line_search(),
    ),
    "nonlinear_cg": optax_nlcg.nonlinear_cg,
}
NUM_STEPS = 6


def never(step):
    return step < 0


def always(step):
    return step >= 0


def needs(wrapper):
    """Skips what Optax 0.2.5 has not got yet."""
    if wrapper in ("freeze", "selective_transform") and not hasattr(optax, wrapper):
        pytest.skip(f"`optax.{wrapper}` came after 0.2.5, the oldest supported")


# Wrappers that change nothing: as nothing triggers what they are for.
NEUTRAL = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e9), tx),
    "named_chain": lambda tx: optax.named_chain(("nlcg", tx)),
    "masked": lambda tx: optax.masked(tx, True),
    "partition": lambda tx: optax.partition({"all": tx}, "all"),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, always),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, always),
    "selective_transform": lambda tx: optax.selective_transform(tx, freeze_mask=False),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "multi_steps": lambda tx: optax_nlcg.multi_steps(tx, 1),
    "with_extra_args_support": optax.with_extra_args_support,
}


def train(name, tx, params=None, steps=NUM_STEPS, fun=cases.loss):
    params = cases.params_of() if params is None else params
    case = "diagonal_estimated" if name == "curvature" else name
    return cases.train(case, tx, params, steps, fun)


def unwrapped(name):
    return cases.unwrapped(name, NUM_STEPS)


def assert_same(got, want, rtol=2e-4, atol=2e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), got, want
    )


PAIRS = [("nlcg", wrapper) for wrapper in NEUTRAL]
PAIRS += [("nonlinear_cg", wrapper) for wrapper in ("chain", "masked", "partition")]
PAIRS += [("nonlinear_cg", wrapper) for wrapper in ("apply_if_finite", "MultiSteps")]


@pytest.mark.parametrize(("name", "wrapper"), PAIRS)
def test_changes_nothing_where_it_need_not(name, wrapper):
    needs(wrapper)
    run = train(name, NEUTRAL[wrapper](OPTIMIZERS[name]()))
    assert_same(run.params, unwrapped(name).params)
    np.testing.assert_allclose(run.losses, unwrapped(name).losses, rtol=1e-4)


INJECTED = {
    "nlcg": lambda: optax.inject_hyperparams(optax_nlcg.nlcg)(learning_rate=0.1),
    "nonlinear_cg": optax.inject_hyperparams(optax_nlcg.nonlinear_cg),
}


@pytest.mark.parametrize("name", INJECTED)
def test_inject_hyperparams(name):
    run = train(name, INJECTED[name]())
    assert_same(run.params, unwrapped(name).params)


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
@pytest.mark.parametrize(
    "stage",
    [
        optax_nlcg.scale_by_diagonal_bfgs,
        optax_nlcg.scale_by_hessian_diagonal,
        optax_nlcg.scale_by_step_line_search,
        optax_nlcg.scale_by_curvature_line_search,
        optax_nlcg.scale_by_hager_zhang_line_search,
    ],
)
def test_injected_numbers_are_as_wide_as_the_parameters(stage, dtype):
    """Traced, too: their values are not known where arguments are checked."""
    is_complex = dtype == "complex64"
    options = {"hyperparam_dtype": jnp.float32} if is_complex else {}
    tx = optax.chain(optax.scale(-0.1), optax.inject_hyperparams(stage, **options)())
    params = cases.params_of(dtype)
    state = tx.init(params)
    step = cases.make_step("diagonal_estimated", tx)
    _, new_state, _, _ = jax.eval_shape(step, params, state)
    for new, old in zip(*map(jax.tree.leaves, (new_state, state)), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (optax_nlcg.limited_memory_cg, "memory_size", 3),
        (optax_nlcg.scale_by_conjugate_direction, "accumulator_dtype", jnp.bfloat16),
    ],
)
def test_sizes_and_dtypes_are_static(make, name, value):
    x = jnp.ones(3)
    tx = optax.inject_hyperparams(make, static_args=(name,))(**{name: value})
    state = jax.eval_shape(tx.init, x)
    expected = jax.eval_shape(make(**{name: value}).init, x)
    assert jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype),
        state.inner_state,
        expected,
    ) == jax.tree.map(lambda _: True, expected)


def test_injected_schedules_are_followed():
    make = functools.partial(optax_nlcg.nlcg, line_search=optax.identity())

    def schedule(count):
        return 0.1 / (1 + count)

    wrapped = optax.inject_hyperparams(optax_nlcg.nlcg)
    injected = train("nlcg", wrapped(schedule, line_search=optax.identity()))
    assert_same(injected.params, train("nlcg", make(schedule)).params)
    np.testing.assert_allclose(
        injected.state.hyperparams["learning_rate"],
        schedule(NUM_STEPS - 1),
        rtol=1e-6,
    )


MASK = {"w": True, "b": [False, True]}


def part(tree):
    """What the mask leaves."""
    return {"w": tree["w"], "b": [tree["b"][1]]}


def sub_problem(frozen):
    """The loss of the parameters that the mask leaves, the others held fixed."""

    def fun(params):
        whole = {"w": params["w"], "b": [frozen, params["b"][0]]}
        return cases.loss(whole)

    return fun


PARTIAL = {
    # masked lets the gradient of the rest through: another stage must stop it.
    "masked": lambda tx: optax.chain(
        optax.masked(tx, MASK),
        optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, MASK)),
    ),
    "partition": lambda tx: optax.partition(
        {True: tx, False: optax.set_to_zero()}, MASK
    ),
    "selective_transform": lambda tx: optax.selective_transform(
        tx, freeze_mask=jax.tree.map(lambda m: not m, MASK)
    ),
    "freeze": lambda tx: optax.chain(
        optax.freeze(jax.tree.map(lambda m: not m, MASK)), tx
    ),
}


@pytest.mark.parametrize("wrapper", PARTIAL)
def test_frozen_parameters_are_as_good_as_constants(wrapper):
    needs(wrapper)
    start = cases.params_of()
    run = train("nlcg", PARTIAL[wrapper](OPTIMIZERS["nlcg"]()))
    want = train(
        "nlcg", OPTIMIZERS["nlcg"](), part(start), fun=sub_problem(start["b"][0])
    )
    assert_same(part(run.params), want.params)
    np.testing.assert_array_equal(run.params["b"][0], start["b"][0])


@pytest.mark.parametrize("wrapper", ["masked", "partition", "selective_transform"])
@pytest.mark.parametrize("search", ["curvature", "nonlinear_cg"])
def test_searches_that_call_the_loss_cannot_be_masked(search, wrapper):
    """The loss wants all parameters, and the search has only some of them."""
    needs(wrapper)
    with pytest.raises(ValueError, match=r"needs all parameters.*set_to_zero"):
        train(search, PARTIAL[wrapper](OPTIMIZERS[search]()), steps=1)


def test_given_diagonals_can_be_masked():
    """The preconditioner sees the diagonal of its part, if Optax is told to cut it."""
    make = cases.OPTIMIZERS["diagonal_given"]
    frozen = jax.tree.map(lambda m: not m, MASK)
    start = cases.params_of()

    def masked(**options):
        return optax.chain(
            optax.masked(make(), MASK, **options),
            optax.masked(optax.set_to_zero(), frozen),
        )

    run = train("diagonal_given", masked(mask_compatible_extra_args=True))
    fun = sub_problem(start["b"][0])
    want = train("diagonal_given", make(), part(start), fun=fun)
    assert_same(part(run.params), want.params)
    with pytest.raises(ValueError, match="`hessian_diagonal` has the tree structure"):
        train("diagonal_given", masked(), steps=1)


def test_searches_outermost_work_with_frozen_parameters():
    """The gradient's frozen part is zero, and so is the step's."""
    needs("freeze")
    frozen = jax.tree.map(lambda m: not m, MASK)
    start = cases.params_of()
    tx = optax.chain(
        optax.freeze(frozen),
        optax_nlcg.scale_by_conjugate_direction(beta_rule="hager_zhang"),
        optax.scale(-1.0),
        optax_nlcg.scale_by_hager_zhang_line_search(),
    )
    run = train("nonlinear_cg", tx, steps=12)
    want = train(
        "nonlinear_cg",
        OPTIMIZERS["nonlinear_cg"](),
        part(start),
        fun=sub_problem(start["b"][0]),
        steps=12,
    )
    np.testing.assert_allclose(run.losses[-1], want.losses[-1], rtol=1e-4)
    np.testing.assert_array_equal(run.params["b"][0], start["b"][0])


def test_two_optimizers_for_two_parts():
    """Each sees its own part alone; both see the loss."""
    tx = optax.partition({True: OPTIMIZERS["nlcg"](), False: optax.adam(0.1)}, MASK)
    run = train("nlcg", tx, steps=30)
    assert run.losses[-1] < 1e-2 * run.losses[0]


def test_conditionally_mask_stands_still():
    """Steps 0, 2, 4 are taken, the others not; the state of the optimizer stays."""
    tx = optax.conditionally_mask(OPTIMIZERS["nlcg"](), lambda step: step % 2 == 0)
    run = train("nlcg", tx, steps=2 * NUM_STEPS)
    assert_same(run.params, unwrapped("nlcg").params, rtol=1e-3, atol=1e-4)


def test_conditionally_transform_passes_gradients_through():
    """What Optax says of it: with a whole optimizer the raw gradient is added."""
    tx = optax.conditionally_transform(OPTIMIZERS["nlcg"](), never)
    params = cases.params_of()
    run = train("nlcg", tx, steps=1)
    np.testing.assert_allclose(
        run.updates["w"], jax.grad(cases.loss)(params)["w"], rtol=1e-5
    )


def test_apply_if_finite_sees_the_gradient_first():
    """It skips the step itself: nothing is left for the optimizer to count."""
    tx = optax.apply_if_finite(optax_nlcg.nlcg(0.1), 5)
    params = cases.params_of()
    bad = optax.tree.full_like(params, jnp.nan)
    updates, state = tx.update(bad, tx.init(params), params, value=1.0)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(updates))
    assert state.total_notfinite == 1
    search = state.inner_state[-1]
    assert (search.count, search.num_skipped) == (0, 0)


def test_flatten():
    """All parameters in one array: sums are the same."""
    run = train("nlcg", optax.flatten(OPTIMIZERS["nlcg"]()))
    assert_same(run.params, unwrapped("nlcg").params)


@pytest.mark.parametrize("search", ["curvature", "nonlinear_cg"])
def test_flatten_is_not_for_searches_that_call_the_loss(search):
    """The loss is handed the flat array; what it makes of it is its own affair."""

    def fun(params):
        return cases.loss({"w": params["w"], "b": params["b"]})

    with pytest.raises((ValueError, TypeError, IndexError)):
        train(search, optax.flatten(OPTIMIZERS[search]()), fun=fun, steps=1)


def test_schedule_free():
    """The optimizer is asked for its step at the averaged point, as any other is."""
    tx = optax.contrib.schedule_free(
        optax_nlcg.nlcg(0.1, beta_rule=0.0, line_search=optax.identity()), 0.1
    )
    run = train("nlcg", tx, steps=30)
    at = optax.contrib.schedule_free_eval_params(run.state, run.params)
    assert cases.loss(at) < 2e-2 * run.losses[0]


def test_mechanize():
    """It learns the scale of the step, so that no line search must do the same."""
    tx = optax.contrib.mechanize(
        optax_nlcg.nlcg(1.0, line_search=optax.identity()), s_init=1e-2
    )
    run = train("nlcg", tx, steps=60)
    assert run.losses[-1] < 0.1 * run.losses[0]


DROPPING = {
    # Optax hands these no extra arguments; the error says which argument is missing.
    "chain of MultiSteps": lambda tx: optax.chain(
        optax.MultiSteps(tx, 2).gradient_transformation()
    ),
    "gradient_transformation": lambda tx: optax.MultiSteps(
        tx, 2
    ).gradient_transformation(),
    "without extra arguments": lambda tx: optax.GradientTransformation(*tx),
}


@pytest.mark.parametrize("wrapper", DROPPING)
def test_without_the_loss_the_error_says_what_is_missing(wrapper):
    tx = optax.with_extra_args_support(DROPPING[wrapper](optax_nlcg.nlcg(0.1)))
    with pytest.raises(ValueError, match=r"needs `value`.*value=loss"):
        train("nlcg", tx, steps=1)


def plain():
    return optax_nlcg.nlcg(0.1, line_search=optax.identity())


def test_lookahead_without_a_search():
    """It passes no extra arguments on, and takes none."""
    tx = optax.lookahead(plain(), sync_period=3, slow_step_size=1.0)
    params = optax.LookaheadParams.init_synced(cases.params_of())
    state = tx.init(params)

    @cases.jit
    def step(params, state):
        grads = jax.grad(cases.loss)(params.fast)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    for _ in range(NUM_STEPS):
        params, state, grads = step(params, state)
    assert_same(params.fast, train("nlcg", plain()).params)
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        tx.update(grads, state, params, value=1.0)
    search = optax.lookahead(optax_nlcg.nlcg(0.1), 3, 0.5)
    with pytest.raises(ValueError, match="needs `value`"):
        search.update(grads, search.init(params), params)


def test_split_real_and_imaginary_without_a_search():
    """Nothing is gained: complex parameters are right without it."""
    params = cases.params_of("complex64")
    tx = plain()
    split = optax.contrib.split_real_and_imaginary(plain())

    def train_with(tx):
        @cases.jit
        def step(params, state):
            grads = jax.tree.map(jnp.conj, jax.grad(cases.loss)(params))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        at, state = params, tx.init(params)
        for _ in range(NUM_STEPS):
            at, state = step(at, state)
        return at, state

    want, _ = train_with(tx)
    got, state = train_with(split)
    assert_same(got, want)
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        split.update(params, state, params, value=1.0)


@pytest.mark.parametrize("opaque", [True, False])
def test_sam_without_a_search(opaque):
    """Two gradients a step; extra arguments other than grad_fn it does not take."""
    tx = optax.contrib.sam(plain(), optax.sgd(1e-3), opaque_mode=opaque)
    params = cases.params_of()
    state = tx.init(params)
    first = cases.loss(params)

    @cases.jit
    def step(params, state):
        grads = jax.grad(cases.loss)(params)
        updates, state = tx.update(
            grads, state, params, grad_fn=lambda p, _: jax.grad(cases.loss)(p)
        )
        return optax.apply_updates(params, updates), state, grads

    for _ in range(40):
        params, state, grads = step(params, state)
    assert cases.loss(params) < 1e-2 * first
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        tx.update(grads, state, params, value=1.0)
