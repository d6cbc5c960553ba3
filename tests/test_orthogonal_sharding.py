"""Orthogonalisation of matrices that are split, and that are shared out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_nlcg
from benchmarks import collectives, metrics
from tests.common import draw, orthogonalize


def make_mesh(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("d",), axis_types=(kind,))


@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P()])
def test_sharded_under_jit(spec):
    gradient = draw((8, 12))
    split = jax.device_put(gradient, NamedSharding(make_mesh(), spec))
    got = jax.jit(orthogonalize)(split)
    np.testing.assert_allclose(got, orthogonalize(gradient), rtol=1e-3, atol=1e-5)
    assert got.sharding.is_equivalent_to(split.sharding, 2)


PARTS = {
    "rows": ((8, 12), P("e"), True),
    "more rows": ((8, 12), P("e", None), True),
    "taller": ((16, 8), P("e"), True),
    "taller in part alone": ((12, 16), P(None, "e"), True),
    "columns": ((8, 12), P(None, "e"), True),
    "both": ((3, 6, 8), P(None, "d", "e"), (1, 2)),
    "rows over two": ((16, 6), P(("d", "e")), True),
    "kernel": ((3, 3, 4, 16), P(None, None, "e"), True),
    "heads": ((8, 2, 6), P(None, "d"), (0, (1, 2))),
    "layers": ((4, 8, 12), P("d", None, "e"), (1, 2)),
    "whole layers": ((4, 3, 5), P("e"), (1, 2)),
    "whole": ((5, 7), P(), True),
    "bias": ((8,), P("e"), False),
}
PART_SPECS = {name: spec for name, (_, spec, _) in PARTS.items()}
PART_CHOICES = {name: choice for name, (_, _, choice) in PARTS.items()}


def draw_parts(dtype=np.float32):
    return {
        name: draw(shape, seed, dtype)
        for seed, (name, (shape, _, _)) in enumerate(PARTS.items())
    }


@pytest.mark.parametrize(
    ("check_vma", "dtype"), [(True, np.float32), (False, jnp.bfloat16)]
)
def test_matrices_that_are_split_by_hand(check_vma, dtype):
    """The same numbers, and the same inner product; those of one size go together."""
    mesh = jax.make_mesh((2, 4), ("d", "e"), axis_types=(AxisType.Auto,) * 2)
    params = draw_parts(dtype)
    stage = optax_nlcg.scale_by_conjugate_direction(
        optax_nlcg.scale_by_orthogonalization(PART_CHOICES)
    )
    tx = optax_nlcg.parallel.over_shards(stage, PART_SPECS)

    def update(tx, params):
        updates, state = tx.update(params, tx.init(params), params)
        return updates, state.gz

    split = jax.jit(
        jax.shard_map(
            lambda params: update(tx, params),
            mesh=mesh,
            in_specs=(PART_SPECS,),
            out_specs=(PART_SPECS, P()),
            check_vma=check_vma,
        )
    )
    got, gz = split(params)
    want, want_gz = jax.jit(lambda params: update(stage, params))(params)
    tolerance = 1e-5 if dtype == np.float32 else 0.1
    for name in PARTS:
        np.testing.assert_allclose(
            *(np.float32(z[name]) for z in (got, want)), atol=tolerance, err_msg=name
        )
    np.testing.assert_allclose(gz, want_gz, rtol=tolerance)
    kinds = [one.kind for one in collectives.read(split.lower(params).compile())]
    # There and back for each size, and twice for "both".
    assert kinds.count("all-to-all") == 2 * (9 + 1)
    assert "all-gather" not in kinds


@pytest.mark.parametrize("other", [AxisType.Explicit, AxisType.Auto])
def test_matrices_that_are_split_over_an_explicit_mesh(other):
    mesh = jax.make_mesh((2, 4), ("d", "e"), axis_types=(AxisType.Explicit, other))
    whole = draw_parts()
    params = {
        name: jax.device_put(x, NamedSharding(mesh, PART_SPECS[name]))
        for name, x in whole.items()
    }
    want = orthogonalize(whole, PART_CHOICES)
    compiled = jax.jit(lambda x: orthogonalize(x, PART_CHOICES)).lower(params).compile()
    got = compiled(params)
    for name, x in params.items():
        np.testing.assert_allclose(got[name], want[name], atol=1e-5, err_msg=name)
        assert jax.typeof(got[name]) == jax.typeof(x)
    # Over an axis of another kind it is still the compiler that splits.
    layout = params["layers"].sharding
    assert got["layers"].sharding.is_equivalent_to(layout, 3)
    kinds = [one.kind for one in collectives.read(compiled)]
    assert "all-to-all" in kinds
    if other == AxisType.Explicit:
        assert kinds.count("all-to-all") == 2 * (9 + 1)
        assert "all-gather" not in kinds


@pytest.mark.parametrize("stack_sharding", [None, P("d")])
def test_matrices_that_are_split_by_hand_under_pmap(stack_sharding):
    """Only those that are not split can be shared out."""
    params = {"rows": draw((8, 12)), "columns": draw((12, 8)), "whole": draw((2, 3, 4))}
    chosen = {"rows": True, "columns": True, "whole": (1, 2)}
    want = orthogonalize(params, chosen)
    specs = {"rows": P("d"), "columns": P(None, "d"), "whole": P()}
    tx = optax_nlcg.parallel.over_shards(
        optax_nlcg.scale_by_orthogonalization(chosen, stack_sharding), specs
    )
    parts = {
        "rows": np.stack(np.split(params["rows"], 4)),
        "columns": np.stack(np.split(params["columns"], 4, axis=1)),
        "whole": np.stack([params["whole"]] * 4),
    }
    update = jax.pmap(lambda x: tx.update(x, tx.init(x))[0], "d")
    got = update(parts)
    kinds = {one.kind for one in collectives.read(update.lower(parts).compile())}
    assert "all-to-all" in kinds
    assert (len(kinds) == 1) == (stack_sharding is None)
    for i in range(4):
        np.testing.assert_allclose(got["whole"][i], want["whole"], atol=1e-5)
    for name, axis in (("rows", 0), ("columns", 1)):
        whole = np.concatenate(list(got[name]), axis)
        np.testing.assert_allclose(whole, want[name], atol=1e-5)


LAYERS = {
    "up": (4, 16),  # together two, as many as half the devices
    "down": (16, 4),
    "stacked": (6, 8, 4),
    "single": (8, 8),  # left to the compiler
    "bias": (16,),
}
MATRICES = {"up": True, "down": True, "stacked": (1, 2), "single": True, "bias": False}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("split", [False, True])
def test_stacks_that_are_shared_out(kind, split):
    """The same numbers and layouts; and each matrix on one device."""
    mesh = make_mesh(kind)
    specs = {
        "up": P(None, "d"),
        "down": P("d", None),
        "stacked": P(None, "d", None),
        "single": P(),
        "bias": P("d"),
    }
    params = {name: draw(shape) for name, shape in LAYERS.items()}
    want = orthogonalize(params, MATRICES)
    placed = {
        name: jax.device_put(x, NamedSharding(mesh, specs[name] if split else P()))
        for name, x in params.items()
    }
    tx = optax_nlcg.scale_by_orthogonalization(MATRICES, NamedSharding(mesh, P("d")))
    state = tx.init(placed)

    def update(params):
        return tx.update(params, state)[0]

    shardings = jax.tree.map(lambda x: x.sharding, placed)
    compiled = jax.jit(update, out_shardings=shardings).lower(placed).compile()
    got = compiled(placed)
    for name, z in got.items():
        np.testing.assert_allclose(z, want[name], rtol=1e-3, atol=1e-5)
        assert z.sharding.is_equivalent_to(placed[name].sharding, z.ndim)
    # There and back, or only back; two sizes of matrices.
    sent = collectives.read(compiled)
    kinds = {one.kind for one in sent}
    assert kinds == ({"all-to-all"} if split else {"all-gather"})
    assert len(sent) == (4 if split else 2)


@pytest.mark.parametrize("mode", ["check_vma", "no check_vma", "pmap"])
def test_stacks_that_are_shared_out_by_hand(mode):
    """The same numbers on all devices; and each matrix on one of them."""
    params = {name: draw(shape) for name, shape in LAYERS.items()}
    want = orthogonalize(params, MATRICES)
    mesh = make_mesh()
    if mode == "pmap":
        params = jax.tree.map(lambda x: jnp.stack([x] * mesh.size), params)

    def on_all_devices(update):
        if mode == "pmap":
            return jax.pmap(update, "d")
        check_vma = mode == "check_vma"
        return jax.jit(
            jax.shard_map(
                update, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=check_vma
            )
        )

    def step(sharding, names=tuple(LAYERS)):
        chosen = {name: MATRICES[name] for name in names}
        return on_all_devices(lambda x: orthogonalize(x, chosen, sharding))

    for name, z in step(P("d"))(params).items():
        assert len(z.addressable_shards) == mesh.size
        for shard in z.addressable_shards:
            part = shard.data.reshape(want[name].shape)
            np.testing.assert_allclose(part, want[name], rtol=1e-3, atol=1e-5)
    shared_out, alone = (
        step(sharding).lower(params).compile() for sharding in (P("d"), None)
    )
    sent = collectives.read(shared_out)
    assert not collectives.read(alone)
    if jax.__version_info__ >= (0, 10):
        assert [one.kind for one in sent] == ["all-gather"] * 2  # sizes of matrices
    # Of eight matrices a device has three, but for the one that all have.
    single = step(None, ["single"]).lower({"single": params["single"]}).compile()
    by_all = metrics.flops(single)
    assert metrics.flops(shared_out) - by_all < 0.5 * (metrics.flops(alone) - by_all)


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(
    ("kind", "axes", "number", "shared_out"),
    [
        (AxisType.Auto, "e", 3, True),
        (AxisType.Auto, ("e", "d"), 3, False),  # fewer than half the devices
        (AxisType.Auto, ("e", "d"), 4, True),
        (AxisType.Explicit, "e", 3, True),
    ],
)
def test_axes_that_stacks_are_shared_out_over(kind, axes, number, shared_out, by_hand):
    """One of the mesh's, or several together; others may be of another kind."""
    mesh = jax.make_mesh((2, 4), ("d", "e"), axis_types=(kind, AxisType.Auto))
    x = jax.device_put(draw((number, 2, 5)), NamedSharding(mesh, P()))
    sharding = P(axes) if by_hand else NamedSharding(mesh, P(axes))

    def update(x):
        return orthogonalize(x, (1, 2), sharding)

    if by_hand:
        update = jax.shard_map(update, mesh=mesh, in_specs=P(), out_specs=P())
    compiled = jax.jit(update).lower(x).compile()
    want = orthogonalize(np.asarray(x), (1, 2))
    np.testing.assert_allclose(compiled(x), want, atol=1e-5)
    assert bool(collectives.read(compiled)) == shared_out


def test_axes_of_stacks_must_be_of_the_right_kind():
    mesh = make_mesh()
    x = draw((4, 6))

    def by_hand(sharding):
        return jax.shard_map(
            lambda x: orthogonalize(x, None, sharding),
            mesh=mesh,
            in_specs=P(),
            out_specs=P(),
        )

    with pytest.raises(ValueError, match="splits over 'd', which `shard_map` or `pmap"):
        jax.jit(by_hand(NamedSharding(mesh, P("d"))))(x)
    with pytest.raises(ValueError, match="no 'd' is mapped here: pass NamedSharding"):
        jax.jit(lambda x: orthogonalize(x, None, P("d")))(x)
    with pytest.raises(ValueError, match="no 'e' is mapped here: pass NamedSharding"):
        jax.jit(by_hand(P("e")))(x)
