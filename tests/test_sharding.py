"""Sharded parameters: the same numbers, and nothing but scalars between devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_nlcg
from benchmarks import collectives, communication
from tests import common

OPTIMIZERS = {
    "fletcher_reeves": lambda: optax_nlcg.nlcg(
        0.1, preconditioner=optax.identity(), line_search=optax.identity()
    ),
    "hager_zhang": lambda: optax_nlcg.nlcg(
        0.1, beta_rule="hager_zhang", preconditioner=optax.identity()
    ),
    "default": lambda: optax_nlcg.nlcg(0.1),
    "ml_ncg": lambda: optax_nlcg.reference.ml_ncg(0.1),
    "orthogonalization": lambda: with_orthogonalization(),
    "orthogonalization, shared out": lambda: with_orthogonalization(
        # The two matrices are not of one size: a device of two works on each.
        NamedSharding(make_mesh(4, 2), PartitionSpec("stacks"))
    ),
}
# Reductions in one update with split parameters. BFGS needs its two inner products
# before it can make z, and the direction those of z: two is the least. The Hager-Zhang
# rule preconditions twice. The search by curvature needs those of the new direction. An
# estimate of the Hessian's diagonal needs its mean, then the mean of P, and extremes.
REDUCTIONS = {
    "nlcg": 2,
    "nlcg, online search": 2,
    "nlcg, Polak-Ribiere": 2,
    "nlcg, Hager-Zhang rule": 2,
    "nlcg, no preconditioner": 1,
    "nlcg, Hessian diagonal": 1,
    "nlcg, Hessian diagonal, step with an estimate": 4,
    "nlcg, no preconditioner, curvature search": 2,
    "nonlinear_cg's direction": 1,
    "reference.ml_ncg": 2,
}


def make_mesh(*shape):
    names = ("fsdp", "stacks")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def with_orthogonalization(stack_sharding=None):
    metric = optax_nlcg.scale_by_orthogonalization(stack_sharding=stack_sharding)
    return optax_nlcg.nlcg(0.01, preconditioner=metric)


@pytest.fixture
def mesh():
    return make_mesh(8)


def loss(params):
    hidden = jnp.tanh(params["in"] @ params["out"])
    return jnp.mean((hidden - 0.5) ** 2)


def make_params():
    rng = np.random.default_rng(0)
    return {
        "in": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_as_on_one_device(mesh, name):
    tx = OPTIMIZERS[name]()
    want, _, losses = common.descend(tx, loss, make_params(), 20)
    params = jax.device_put(make_params(), NamedSharding(mesh, PartitionSpec("fsdp")))
    got, state, _ = common.descend(tx, loss, params, 20)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), got, want)
    assert losses[-1] < losses[0]
    sharded = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert all(not leaf.sharding.is_fully_replicated for leaf in sharded)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_split_parameters_need_scalars_only(name):
    mesh, spec = communication.make_mesh(), communication.LAYOUTS["split"]
    found = communication.measure(communication.CASES[name], spec, mesh)
    assert [one.kind for one in found] == ["all-reduce"] * REDUCTIONS[name]
    for one in found:
        assert all(math.prod(shape) <= 8 for shape in one.shapes)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_replicated_parameters_need_no_communication(name):
    mesh, spec = communication.make_mesh(), communication.LAYOUTS["replicated"]
    assert communication.measure(communication.CASES[name], spec, mesh) == []


def test_parts_by_hand_need_as_little():
    spec = communication.LAYOUTS["split"]
    mesh = communication.make_mesh()
    tx = optax_nlcg.parallel.over_shards(optax_nlcg.nlcg(0.1), spec)

    def update(grads, count):
        direction, *others = tx.init(grads)
        bfgs = direction.preconditioner._replace(count=count)  # not the first step
        state = direction._replace(preconditioner=bfgs), *others
        return tx.update(grads, state, grads, value=1.0)[0]

    specs = spec, PartitionSpec()
    run = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=specs, out_specs=spec))
    program = run.lower(make_params(), jnp.ones((), jnp.int32)).compile()
    assert collectives.summary(collectives.read(program)) == {
        "all-reduce": {"count": 2, "bytes": 2 * 2 * 4}
    }


def test_reading_of_loops(mesh):
    """Layers in a loop: the gradient of each is summed over devices, four times."""

    def step(weights, x):
        def value(weights):
            return jnp.mean(jax.lax.scan(layer, x, weights)[0])

        return jax.grad(value)(weights)

    def layer(x, weight):
        return jnp.tanh(x @ weight), None

    replicated, split = (
        NamedSharding(mesh, P) for P in (PartitionSpec(), PartitionSpec("fsdp"))
    )
    arguments = (
        jax.ShapeDtypeStruct((4, 8, 8), jnp.float32, sharding=replicated),
        jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=split),
    )
    compiled = jax.jit(step, out_shardings=replicated).lower(*arguments).compile()
    found = collectives.summary(collectives.read(compiled))
    assert found == {"all-reduce": {"count": 4, "bytes": 4 * 8 * 8 * 4}}


def test_pieces_and_halves_count_once():
    """As TPU programs have them; the operands of a start are in its result."""
    whole = "all-gather(%x.0), channel_id=82, dimensions={0}, backend_config="
    config = '{"async_collective_fusion_config":{"flag_start":"%s","flag_end":"%s"}}'
    text = f"""
%head (x.0: f32[8]) -> f32[32] {{
  %x.0 = f32[8]{{0:T(128)}} parameter(0)
  ROOT %gather.0 = f32[32]{{0:T(128)}} {whole}{config % ("-1", "-1")}
}}

%middle (x.0: f32[8]) -> f32[32] {{
  %x.0 = f32[8]{{0:T(128)}} parameter(0)
  ROOT %gather.1 = f32[32]{{0:T(128)}} {whole}{config % ("2", "8")}
}}

ENTRY %main (x: f32[8]) -> f32[32] {{
  %x = f32[8]{{0:T(128)}} parameter(0)
  %start = (f32[8]{{0:T(128)}}, f32[8]{{0:T(128)S(1)}}, u32[], u32[]) \
collective-permute-start(%x), source_target_pairs={{{{0,1}},{{1,0}}}}
  %done = f32[8]{{0:T(128)S(1)}} collective-permute-done(%start)
  %fusion.0 = f32[32]{{0:T(128)}} fusion(%done), kind=kCustom, calls=%head
  ROOT %fusion.1 = f32[32]{{0:T(128)}} fusion(%done), kind=kCustom, calls=%middle
}}
"""
    assert collectives.summary(collectives.read(text)) == {
        "all-gather": {"count": 1, "bytes": 4 * 32},
        "collective-permute": {"count": 1, "bytes": 4 * 8},
    }


def test_bytes_on_a_ring():
    one = collectives.Collective("all-reduce", ((3,),), 12, times=2)
    assert one.sent(4) == 2 * 2 * 3 / 4 * 12
    gathered = collectives.Collective("all-gather", ((8,),), 32)
    scattered = collectives.Collective("reduce-scatter", ((2,),), 8)
    assert gathered.sent(4) == scattered.sent(4) == 24
