"""`synchronize` and `over_shards` against the same on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optax_nlcg
from optax_nlcg import parallel, shards
from tests.cases import jit

pytestmark = pytest.mark.usefixtures("time_limit", "x64")

NUM_DEVICES = 8


def make_mesh():
    return jax.make_mesh((NUM_DEVICES,), ("d",), axis_types=(AxisType.Auto,))


MODES = "check_vma", "no_check_vma", "pmap"


def on_every_device(function, mode, params, xs):
    """What each device gets from all parameters and its part of the samples."""
    if mode == "pmap":
        mapped = jax.pmap(function, axis_name="d", in_axes=(None, 0))
        return mapped(params, xs.reshape(NUM_DEVICES, -1, xs.shape[-1]))
    return jit(
        jax.shard_map(
            lambda *args: jax.tree.map(lambda a: a[None], function(*args)),
            mesh=make_mesh(),
            in_specs=(P(), P("d")),
            out_specs=P("d"),
            check_vma=mode == "check_vma",
        )
    )(params, xs)


def value_gradient_and_product(value_fn, params):
    value, grads = jax.value_and_grad(value_fn)(params)
    ones = jax.tree.map(jnp.ones_like, params)
    return value, grads, jax.jvp(jax.grad(value_fn), (params,), (ones,))[1]


def quartic(params, x):
    """Its Hessian differs between batches; one parameter is complex."""
    prediction = x @ params["a"] ** 2 + jnp.abs(params["b"] ** 2) * x[:, 0]
    return jnp.mean((prediction - 1) ** 2)


@pytest.mark.parametrize("mode", MODES)
def test_synchronize(mode):
    rng = np.random.default_rng(1)
    params = {"a": jnp.asarray(rng.normal(size=4)), "b": jnp.array(1 + 2j)}
    xs = jnp.asarray(rng.normal(size=(16, 4)))

    def local(params, x):
        value_fn = parallel.synchronize(lambda p: quartic(p, x), "d")
        return value_gradient_and_product(lambda p: 3 * value_fn(p), params)

    want = value_gradient_and_product(lambda p: 3 * quartic(p, xs), params)
    for copy in range(NUM_DEVICES):
        jax.tree.map(
            lambda x, y, i=copy: np.testing.assert_allclose(x[i], y, rtol=1e-12),
            on_every_device(local, mode, params, xs),
            want,
        )


def test_synchronize_keeps_the_dtype_of_parameters():
    seen = set()

    def value_fn(w):
        seen.add(w.dtype)
        return jnp.mean(w)

    gradient = jax.shard_map(
        jax.grad(parallel.synchronize(value_fn, "d")),
        mesh=make_mesh(),
        in_specs=P(),
        out_specs=P(),
    )
    found = jax.eval_shape(gradient, jnp.ones(2, jnp.bfloat16))
    assert seen == {found.dtype} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("mode", MODES)
def test_the_plain_mean_of_losses_has_another_gradient(mode):
    """Why `synchronize` is there; only `check_vma=True` makes do without."""
    xs = jnp.arange(16.0).reshape(16, 1)

    def local(w, x):
        return jax.grad(lambda w: jax.lax.pmean(jnp.mean(w * x), "d"))(w)

    grads = on_every_device(local, mode, jnp.ones(()), xs)
    same = np.allclose(grads, np.mean(xs))
    assert same == (mode == "check_vma")


@pytest.fixture
def two_axes():
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


# Leaves that are split over both axes, one of them, and none.
TREE = {
    "both": np.linspace(-1, 2, 64).reshape(8, 8),
    "one": [np.linspace(3, 5, 12).reshape(4, 3)],
    "complex": np.array([3 + 4j, 0.5j]),
    "none": np.array(2.0),
}
TREE_SPECS = {"both": P("a", "b"), "one": P("a"), "complex": P(), "none": P()}


@pytest.mark.parametrize(
    ("axis_name", "check_vma"),
    # Without the name of the axis that parameters are split over `check_vma` complains.
    [(("a", "b"), True), (("a", "b"), False), ("a", False)],
)
def test_batch_and_parameters_over_different_axes(two_axes, axis_name, check_vma):
    w, x = jnp.arange(4.0), jnp.arange(32.0).reshape(8, 4)

    def value(w, x):
        return jnp.mean((x @ w - 1) ** 2)

    def local(part, x):
        def value_fn(part):
            return value(jax.lax.all_gather(part, "b", tiled=True), x)

        synchronized = parallel.synchronize(value_fn, axis_name, P("b"))
        return jax.value_and_grad(synchronized)(part)

    run = jax.shard_map(
        local,
        mesh=two_axes,
        in_specs=(P("b"), P("a")),
        out_specs=(P(), P("b")),
        check_vma=check_vma,
    )
    for got, want in zip(jit(run)(w, x), jax.value_and_grad(value)(w, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(("chosen", "slope"), [("split", -6), ("whole", -2)])
def test_leaves_keep_their_specs_where_others_are_masked(chosen, slope):
    parts = {"split": jnp.ones((2, 3)), "whole": jnp.ones((2, 2))}  # on two devices
    tx = parallel.over_shards(
        optax.masked(
            optax_nlcg.scale_by_conjugate_direction(),
            {name: name == chosen for name in parts},
        ),
        {"split": P("d"), "whole": P()},
    )

    def slope_of(grads):
        return tx.update(grads, tx.init(grads))[1].inner_state.slope

    got = jax.vmap(slope_of, axis_name="d")(parts)
    np.testing.assert_array_equal(got, [slope, slope])


@pytest.mark.parametrize("check_vma", [True, False])
def test_stages_see_the_whole_of_what_is_split(two_axes, check_vma):
    """Every reduction of the stages, against the same without `shard_map`."""

    def reduce(tx, grads):
        params = jax.tree.map(lambda g: 2 * g + 1, grads)
        state = tx.init(params)
        updates, state = tx.update(
            grads, state, params, hessian_diagonal=params, value=1.0
        )
        updates, state = tx.update(
            updates, state, grads, hessian_diagonal=None, value=1.0
        )
        return [x for x in jax.tree.leaves(state) if x.ndim == 0]

    tx = optax.chain(
        optax_nlcg.scale_by_conjugate_direction(
            optax_nlcg.scale_by_hessian_diagonal(),
            beta_rule="hager_zhang",
            restart_cycles=0.01,  # one step is more than a hundredth of their number
        ),
        optax_nlcg.scale_by_diagonal_bfgs(),
    )
    whole = functools.partial(reduce, tx)
    part = functools.partial(reduce, parallel.over_shards(tx, TREE_SPECS))
    got = jax.shard_map(
        part,
        mesh=two_axes,
        in_specs=(TREE_SPECS,),
        out_specs=P(),
        check_vma=check_vma,
    )
    want = jit(whole)(TREE)
    assert len(want) > 10
    for x, y in zip(jit(got)(TREE), want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_all_devices_skip_a_step_that_is_not_finite_on_one():
    tx = parallel.over_shards(optax_nlcg.nlcg(0.1), P("d"))
    params = np.arange(16.0)
    grads = np.where(params == 3, np.nan, 1.0)

    def step(grads, params):
        updates, state = tx.update(grads, tx.init(params), params, value=1.0)
        return updates, state[0].num_skipped[None]

    updates, num_skipped = jit(
        jax.shard_map(step, mesh=make_mesh(), in_specs=P("d"), out_specs=P("d"))
    )(grads, params)
    np.testing.assert_array_equal(updates, np.zeros(16))
    np.testing.assert_array_equal(num_skipped, np.ones(NUM_DEVICES))


@pytest.mark.parametrize("check_vma", [True, False])
def test_all_devices_leave_out_a_microbatch_that_is_not_finite_on_one(check_vma):
    tx = optax_nlcg.multi_steps(optax_nlcg.nlcg(0.1), 2)
    microbatches = np.linspace(-1, 2, 96).reshape(6, 16)
    microbatches[1, 5] = np.nan

    def train(tx, microbatches, params):
        state = tx.init(params)
        for grads in microbatches:
            updates, state = tx.update(grads, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
        return params, state.num_skipped[None], state.multi_steps.mini_step[None]

    of_parts = jax.shard_map(
        functools.partial(train, parallel.over_shards(tx, P("d"))),
        mesh=make_mesh(),
        in_specs=(P(None, "d"), P("d")),
        out_specs=P("d"),
        check_vma=check_vma,
    )
    params = np.arange(16.0)
    got, num_skipped, mini_step = jit(of_parts)(microbatches, params)
    want, *_ = jit(functools.partial(train, tx))(microbatches, params)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_array_equal(num_skipped, np.ones(NUM_DEVICES))
    np.testing.assert_array_equal(mini_step, np.ones(NUM_DEVICES))


def test_an_optimizer_without_extra_arguments_gets_none():
    tx = parallel.over_shards(optax.scale(-0.5), None)
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=1.0)
    np.testing.assert_array_equal(updates, [-0.5, -0.5])


def test_what_cannot_be_done_on_parts_is_refused():
    params = {"w": jnp.ones((2, 3))}
    refused = {
        "pass `update": optax_nlcg.scale_by_hessian_diagonal(),
        "not like the parameters": optax_nlcg.reference.scale_by_lars(),
    }
    for message, stage in refused.items():
        tx = parallel.over_shards(stage, None)
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params, value_fn=lambda p: 0.0)
        assert not shards.are_split()  # once the error has left the wrapper
    tx = parallel.over_shards(optax_nlcg.nlcg(0.1), {"v": P()})
    with pytest.raises(ValueError, match=r"(?i)dict"):
        tx.init(params)
    with pytest.raises(TypeError, match="`optimizer` must be an Optax"):
        parallel.over_shards(optax_nlcg.nlcg, None)
    with pytest.raises(TypeError, match="`value_fn` must be a function"):
        parallel.synchronize(1.0, "d")
