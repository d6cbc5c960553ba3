"""The same training on one device and under every way to use several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_nlcg
from optax_nlcg import parallel
from tests.cases import jit

# In double precision: searches amplify rounding; what is not rounding shows the more.
pytestmark = pytest.mark.usefixtures("time_limit", "x64")

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
    "adam_scaling": lambda: optax_nlcg.nlcg(
        0.01,
        preconditioner=optax.scale_by_rms(
            0.999, eps_in_sqrt=False, bias_correction=True
        ),
    ),
    "orthogonalization": lambda: optax_nlcg.nlcg(
        0.05, preconditioner=optax_nlcg.scale_by_orthogonalization()
    ),
    "nonlinear_cg": optax_nlcg.nonlinear_cg,
    "limited_memory_cg": lambda: optax_nlcg.limited_memory_cg(2),
    "ml_ncg": lambda: optax_nlcg.reference.ml_ncg(0.3),
}
# One for each kind of stage, for modes that differ little from another.
KINDS = (
    "default",
    "diagonal_estimated",
    "curvature_search",
    "orthogonalization",
    "nonlinear_cg",
)
# The other does not work on parts of the parameters, see `over_shards`.
ON_PARTS = [n for n in OPTIMIZERS if n != "diagonal_estimated"]


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


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", [*OPTIMIZERS, "multi_steps"])
def test_state_is_sharded_like_the_parameters(name, axis_type):
    """From a compiled ``init`` on, where zeros have no layout of their own."""
    if name == "multi_steps":
        tx = optax_nlcg.multi_steps(optax.adam(0.1), every_k=2)
    else:
        tx = OPTIMIZERS[name]()
    params, xs, ys = make_problem()
    params = put(make_mesh(axis_type), params, SPECS)

    def assert_sharded(tree):
        layouts = {shape: params[name].sharding for name, shape in SHAPES.items()}
        like = [x for x in jax.tree.leaves(tree) if x.shape in layouts]
        assert like
        for leaf in like:
            assert leaf.sharding.is_equivalent_to(layouts[leaf.shape], leaf.ndim)

    @jit
    def step(params, state):
        def value_fn(p):
            if axis_type == AxisType.Auto:
                return loss(p, xs[0], ys[0])
            # Products over an axis that is split would need more there.
            return sum(jnp.sum(jnp.cosh(x)) for x in jax.tree.leaves(p))

        value, grads = jax.value_and_grad(value_fn)(params)
        return tx.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn
        )

    assert_sharded(tx.init(params))
    state = jit(tx.init)(params)
    assert_sharded(state)
    updates, state = step(params, state)
    assert_sharded(state)
    assert_sharded(updates)


@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
def test_a_problem_on_each_device(mode):
    """Fits and trainings that have nothing to do with each other."""

    def member_loss(x, target):
        return jnp.sum(jnp.cosh(x - target))

    def fit(target):
        return optax_nlcg.minimize(member_loss, 0 * target, (target,), tol=1e-3).params

    def train(target):
        tx = optax_nlcg.nlcg(0.1)

        def step(carry, _):
            x, state = carry
            value, grad = jax.value_and_grad(member_loss)(x, target)
            updates, state = tx.update(grad, state, x, value=value)
            return (optax.apply_updates(x, updates), state), None

        start = jnp.zeros_like(target)
        return jax.lax.scan(step, (start, tx.init(start)), length=5)[0][0]

    def both(target):
        return fit(target), train(target)

    targets = jnp.linspace(-1.0, 2.0, 2 * NUM_DEVICES).reshape(NUM_DEVICES, 2)
    mesh = make_mesh(AxisType.Auto)
    apart = jax.vmap(both)
    if mode == "shard_map":
        apart = jax.shard_map(
            apart, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False
        )
    got = jit(apart)(jax.device_put(targets, NamedSharding(mesh, P("d"))))
    for lane, target in enumerate(targets):
        for x, alone in zip(got, jit(both)(target), strict=True):
            np.testing.assert_allclose(x[lane], alone, rtol=1e-9, atol=1e-12)
