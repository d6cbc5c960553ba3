"""The same training on one device and under every way to use several."""

import faulthandler
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_nlcg
from optax_nlcg import parallel

NUM_DEVICES = 8
NUM_STEPS = 8

# What is split over devices in fully sharded data parallelism; the last bias is not.
SHAPES = {"w1": (8, 16), "b1": (16,), "w2": (16, 4), "b2": (4,)}
SPECS = {"w1": P(None, "d"), "b1": P("d"), "w2": P("d"), "b2": P()}
REPLICATED = dict.fromkeys(SHAPES, P())


def with_diagonal():
    return optax_nlcg.nlcg(
        0.1, preconditioner=optax_nlcg.scale_by_hessian_diagonal(update_every=3)
    )


def with_curvature_search():
    return optax_nlcg.nlcg(
        1.0,
        beta_rule="polak_ribiere",
        preconditioner=optax.identity(),
        line_search=optax_nlcg.scale_by_curvature_line_search(update_every=2),
    )


OPTIMIZERS = {
    "default": lambda: optax_nlcg.nlcg(0.3),
    "hager_zhang_rule": lambda: optax_nlcg.nlcg(
        0.3,
        beta_rule="hager_zhang",
        line_search=optax_nlcg.scale_by_online_line_search(),
    ),
    "diagonal_given": with_diagonal,
    "diagonal_estimated": with_diagonal,
    "curvature_search": with_curvature_search,
    "orthogonalization": lambda: optax_nlcg.nlcg(
        0.05, preconditioner=optax_nlcg.scale_by_orthogonalization()
    ),
    "nonlinear_cg": optax_nlcg.nonlinear_cg,
    "limited_memory_cg": lambda: optax_nlcg.limited_memory_cg(2),
    "ml_ncg": lambda: optax_nlcg.reference.ml_ncg(0.3),
}
# One for each kind of stage, for modes that differ little from another.
KINDS = "default", "diagonal_estimated", "curvature_search", "nonlinear_cg"
# The other does not work on parts of the parameters, see `over_shards`.
ON_PARTS = [n for n in OPTIMIZERS if n != "diagonal_estimated"]

# Compilation is what takes time here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def time_limit():
    """Devices that wait for each other for ever must end the run, not stop it."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def double_precision():
    """Searches amplify rounding; what is not rounding shows the more."""
    with jax.enable_x64(True):
        yield


def make_mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((NUM_DEVICES,), ("d",), axis_types=(axis_type,))


@functools.cache
def make_problem():
    """Parameters, and a batch for each step."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape)

    params = {name: normal(*shape) / 3 for name, shape in SHAPES.items()}
    xs, ys = normal(NUM_STEPS, 32, 8), normal(NUM_STEPS, 32, 4)
    return params, xs, ys


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] + params["b2"] - y) ** 2)


def train(name, params, xs, ys, synchronize=lambda f: f, wrap=lambda tx: tx):
    """Trains in one program; returns the parameters and the losses."""
    tx = wrap(OPTIMIZERS[name]())

    def step(carry, batch):
        params, state = carry
        value_fn = synchronize(lambda p: loss(p, *batch))
        value, grads = jax.value_and_grad(value_fn)(params)
        extra_args = {"value": value, "grad": grads, "value_fn": value_fn}
        if name == "diagonal_given":  # another function of the batch would do as well
            extra_args["hessian_diagonal"] = jax.tree.map(jnp.square, grads)
        updates, state = tx.update(grads, state, params, **extra_args)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), (xs, ys))
    return params, losses


@functools.cache
def on_one_device(name):
    params, losses = jit(functools.partial(train, name))(*make_problem())
    assert losses[-1] < 0.95 * losses[0]
    return params, losses


def assert_same(name, got):
    want = on_one_device(name)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9), got, want
    )


def put(mesh, tree, specs):
    return jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs
    )


@pytest.mark.parametrize(
    ("name", "params_specs", "batch_spec"),
    [
        *((name, REPLICATED, P(None, "d")) for name in OPTIMIZERS),  # data parallel
        *((name, SPECS, P(None, "d")) for name in OPTIMIZERS),  # fully sharded
        ("default", SPECS, P()),
    ],
)
def test_jit_with_sharded_arrays(name, params_specs, batch_spec):
    mesh = make_mesh()
    params, xs, ys = make_problem()
    got = jit(functools.partial(train, name))(
        put(mesh, params, params_specs),
        *put(mesh, (xs, ys), (batch_spec, batch_spec)),
    )
    assert_same(name, got)


@pytest.mark.parametrize("name", KINDS)
def test_explicit_mesh(name):
    mesh = make_mesh(AxisType.Explicit)
    params, xs, ys = make_problem()
    with jax.set_mesh(mesh):
        got = jit(functools.partial(train, name))(
            put(mesh, params, REPLICATED),
            *put(mesh, (xs, ys), (P(None, "d"), P(None, "d"))),
        )
    assert_same(name, got)


@pytest.mark.parametrize(
    ("name", "check_vma"),
    [*((name, True) for name in OPTIMIZERS), *((name, False) for name in KINDS)],
)
def test_shard_map(name, check_vma):
    run = jax.shard_map(
        functools.partial(
            train, name, synchronize=lambda f: parallel.synchronize(f, "d")
        ),
        mesh=make_mesh(),
        in_specs=(P(), P(None, "d"), P(None, "d")),
        out_specs=P(),
        check_vma=check_vma,
    )
    assert_same(name, jit(run)(*make_problem()))


@pytest.mark.parametrize("name", KINDS)
def test_pmap(name):
    run = jax.pmap(
        functools.partial(
            train, name, synchronize=lambda f: parallel.synchronize(f, "d")
        ),
        axis_name="d",
        in_axes=(None, 1, 1),
    )
    params, xs, ys = make_problem()

    def split(a):
        return a.reshape(NUM_STEPS, NUM_DEVICES, -1, a.shape[-1])

    got = run(params, split(xs), split(ys))
    for leaf in jax.tree.leaves(got):
        for copy in leaf[1:]:
            np.testing.assert_array_equal(copy, leaf[0])
    assert_same(name, jax.tree.map(lambda a: a[0], got))


def gather(params):
    def leaf(x, spec):
        if "d" not in spec:
            return x
        return jax.lax.all_gather(x, "d", axis=tuple(spec).index("d"), tiled=True)

    return jax.tree.map(leaf, params, SPECS)


def synchronize_parts(value_fn):
    return parallel.synchronize(lambda p: value_fn(gather(p)), "d", SPECS)


@pytest.mark.parametrize(
    ("name", "check_vma"),
    [
        *((name, True) for name in ON_PARTS),
        *((name, False) for name in KINDS if name in ON_PARTS),
    ],
)
def test_shard_map_with_parts_of_the_parameters(name, check_vma):
    run = jax.shard_map(
        functools.partial(
            train,
            name,
            synchronize=synchronize_parts,
            wrap=lambda tx: parallel.over_shards(tx, SPECS),
        ),
        mesh=make_mesh(),
        in_specs=(SPECS, P(None, "d"), P(None, "d")),
        out_specs=(SPECS, P()),
        check_vma=check_vma,
    )
    assert_same(name, jit(run)(*make_problem()))


def test_pmap_with_parts_of_the_parameters():
    axes = {
        name: tuple(s).index("d") if "d" in s else None for name, s in SPECS.items()
    }
    params, xs, ys = make_problem()
    run = jax.pmap(
        functools.partial(
            train,
            "default",
            synchronize=synchronize_parts,
            wrap=lambda tx: parallel.over_shards(tx, SPECS),
        ),
        axis_name="d",
        in_axes=({name: None if axes[name] is None else 0 for name in axes}, 1, 1),
    )

    def parts(x, axis):
        return x if axis is None else np.stack(np.split(x, NUM_DEVICES, axis))

    def whole(x, axis):
        return x[0] if axis is None else np.concatenate(list(x), axis)

    got, losses = run(
        {name: parts(x, axes[name]) for name, x in params.items()},
        xs.reshape(NUM_STEPS, NUM_DEVICES, -1, xs.shape[-1]),
        ys.reshape(NUM_STEPS, NUM_DEVICES, -1, ys.shape[-1]),
    )
    got = {name: whole(x, axes[name]) for name, x in got.items()}
    assert_same("default", (got, losses[0]))


@pytest.mark.parametrize("name", [*KINDS, "ml_ncg"])
def test_state_is_sharded_like_the_parameters(name):
    """From a compiled ``init`` on, where zeros have no layout of their own."""
    tx = OPTIMIZERS[name]()
    params, xs, ys = make_problem()
    params = put(make_mesh(), params, SPECS)

    def assert_sharded(tree):
        layouts = {shape: params[name].sharding for name, shape in SHAPES.items()}
        like = [x for x in jax.tree.leaves(tree) if x.shape in layouts]
        assert like
        for leaf in like:
            assert leaf.sharding.is_equivalent_to(layouts[leaf.shape], leaf.ndim)

    @jit
    def step(params, state):
        def value_fn(p):
            return loss(p, xs[0], ys[0])

        value, grads = jax.value_and_grad(value_fn)(params)
        return tx.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn
        )

    state = jit(tx.init)(params)
    assert_sharded(state)
    updates, state = step(params, state)
    assert_sharded(state)
    assert_sharded(updates)


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
        return value_gradient_and_product(value_fn, params)

    want = value_gradient_and_product(lambda p: quartic(p, xs), params)
    for copy in range(NUM_DEVICES):
        jax.tree.map(
            lambda x, y, i=copy: np.testing.assert_allclose(x[i], y, rtol=1e-12),
            on_every_device(local, mode, params, xs),
            want,
        )


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
    tx = parallel.over_shards(optax_nlcg.nlcg(0.1), {"v": P()})
    with pytest.raises(ValueError, match=r"(?i)dict"):
        tx.init(params)
    with pytest.raises(TypeError, match="`optimizer` must be an Optax"):
        parallel.over_shards(optax_nlcg.nlcg, None)
    with pytest.raises(TypeError, match="`value_fn` must be a function"):
        parallel.synchronize(1.0, "d")
