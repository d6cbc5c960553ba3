"""Sharded parameters: the same numbers, and nothing but scalars between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_nlcg
from tests import common

# Reductions between devices in one update: one for the direction, one for BFGS.
OPTIMIZERS = {
    "fletcher_reeves": (
        lambda: optax_nlcg.nlcg(
            0.1, preconditioner=optax.identity(), line_search=optax.identity()
        ),
        1,
    ),
    "hager_zhang": (
        lambda: optax_nlcg.nlcg(
            0.1, beta_rule="hager_zhang", preconditioner=optax.identity()
        ),
        1,
    ),
    "default": (lambda: optax_nlcg.nlcg(0.1), 2),
    "ml_ncg": (lambda: optax_nlcg.reference.ml_ncg(0.1), 2),
}


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))


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
    tx = OPTIMIZERS[name][0]()
    want, _, losses = common.descend(tx, loss, make_params(), 20)
    params = jax.device_put(make_params(), NamedSharding(mesh, PartitionSpec("fsdp")))
    got, state, _ = common.descend(tx, loss, params, 20)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), got, want)
    assert losses[-1] < losses[0]
    sharded = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert all(not leaf.sharding.is_fully_replicated for leaf in sharded)


def collectives(tx, params):
    state = jax.jit(tx.init)(params)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, value=1.0))
    text = update.lower(params, state, params).compile().as_text()
    found = re.findall(
        r"= (\S.*?) (all-reduce|all-gather|all-to-all|collective-permute|"
        r"reduce-scatter)(?:-start)?\(",
        text,
    )
    return [(kind, re.findall(r"\[(\d[\d,]*)\]", shapes)) for shapes, kind in found]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_scalars_are_reduced(mesh, name):
    make, reductions = OPTIMIZERS[name]
    params = jax.device_put(make_params(), NamedSharding(mesh, PartitionSpec("fsdp")))
    found = collectives(make(), params)
    assert [kind for kind, _ in found] == ["all-reduce"] * reductions
    assert all(not shapes for _, shapes in found)  # scalars have no dimensions


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replicated_parameters_need_no_communication(mesh, name):
    params = jax.device_put(make_params(), NamedSharding(mesh, PartitionSpec()))
    assert collectives(OPTIMIZERS[name][0](), params) == []
