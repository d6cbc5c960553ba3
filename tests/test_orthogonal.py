"""Orthogonalisation against singular values and against Optax's Muon."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_nlcg
from benchmarks import collectives, metrics

SHAPES = [(5, 5), (4, 9), (9, 4), (3, 3, 2, 8), (1, 6), (6, 1)]


def draw(shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def apply(gradient, *arguments):
    tx = optax_nlcg.scale_by_orthogonalization(*arguments)
    return tx.update(gradient, tx.init(gradient))[0]


def columns_last(x):
    return tuple(range(x.ndim - 1)), x.ndim - 1


def make_mesh(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("d",), axis_types=(kind,))


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_singular_values_become_one(shape):
    with jax.enable_x64(True):
        gradient = draw(shape, dtype=np.float64)
        z = apply(gradient)
        matrix = gradient.reshape(-1, shape[-1])
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        z = np.asarray(z).reshape(matrix.shape) / (0.2 * max(matrix.shape) ** 0.5)
        values = u.T @ z @ vt.T
        # What five steps of Muon's iteration make of singular values that are not small
        assert s.min() / np.linalg.norm(s) > 0.01
        assert np.all((np.diag(values) > 0.65) & (np.diag(values) < 1.25))
        np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=1e-12)
        np.testing.assert_allclose(u @ values @ vt, z, atol=1e-12)  # nothing else
        # The nuclear norm, roughly: a metric.
        assert 0.65 * s.sum() < np.sum(matrix * z) < 1.25 * s.sum()


@pytest.mark.skipif(
    "consistent_rms" not in inspect.signature(optax.contrib.muon).parameters,
    reason="this Optax's Muon takes no kernels and has no `consistent_rms`",
)
@pytest.mark.parametrize(
    ("numbers", "given"),
    [
        (columns_last, False),
        (columns_last, True),
        (lambda x: (0, tuple(range(1, x.ndim))), True),
        (lambda x: (-1, -2), True),
    ],
)
def test_is_muon_without_momentum(numbers, given):
    """Matrices by Newton-Schulz, the rest by Adam, step after step."""

    def dimensions(params):
        return jax.tree.map(
            lambda x: (
                optax.contrib.MuonDimensionNumbers(*numbers(x)) if x.ndim > 1 else None
            ),
            params,
        )

    muon = optax.contrib.muon(
        -1.0,
        beta=0.0,
        nesterov=False,
        adam_b1=0.0,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    )
    tx = optax_nlcg.scale_by_orthogonalization(dimensions if given else None)
    trees = [
        {str(shape): draw(shape, seed) for shape in [*SHAPES, (7,), ()]}
        for seed in range(3)
    ]
    got_state, want_state = tx.init(trees[0]), muon.init(trees[0])
    for gradients in trees:
        got, got_state = tx.update(gradients, got_state, gradients)
        want, want_state = muon.update(gradients, want_state, gradients)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4),
            got,
            want,
        )


@pytest.mark.parametrize(
    ("choice", "matrix_of"),
    [
        ((1, (2, 3)), lambda x, i: x[i].reshape(5, 14)),
        (((-1, 2), 1), lambda x, i: x[i].transpose(2, 1, 0).reshape(14, 5)),
        (([0, 1, 2], 3), lambda x, i: x.reshape(-1, 7)),
        (True, lambda x, i: x.reshape(-1, 7)),
    ],
)
def test_axes_say_what_the_matrices_are(choice, matrix_of):
    x = draw((3, 5, 2, 7))
    z = apply({"w": x}, {"w": choice})["w"]
    assert z.shape == x.shape
    for i in range(len(x)):
        np.testing.assert_allclose(
            matrix_of(z, i), apply(matrix_of(x, i)), rtol=1e-4, atol=1e-5
        )


@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-36, 36), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_length_of_the_gradient_does_not_matter(exponent, dtype):
    gradient = draw((4, 6))
    # A power of two changes no digit.
    scaled = (gradient * 2.0 ** (3 * exponent)).astype(dtype)
    z = apply(scaled)
    assert z.dtype == dtype
    np.testing.assert_array_equal(z, apply(gradient.astype(dtype)))


def test_float16_and_zero():
    # Neither squares nor, of the largest entry being one, their sum fit.
    z = apply(60_000 * jnp.ones((300, 300), jnp.float16))
    assert jnp.all((z > 0) & (z < jnp.inf))
    np.testing.assert_array_equal(apply(jnp.zeros((3, 4))), np.zeros((3, 4)))
    np.testing.assert_array_equal(apply(jnp.zeros(4)), np.zeros(4))


def test_matrices_without_entries():
    x = {"w": draw((2, 3)), "none": jnp.ones((0, 3))}
    z = apply(x)
    assert z["none"].shape == (0, 3)
    np.testing.assert_array_equal(z["w"], apply(x["w"]))


def test_squares_that_do_not_fit_do_not_stay():
    tx = optax_nlcg.scale_by_orthogonalization()
    state = tx.init(jnp.ones(2, jnp.float16))
    for size in (1e4, 1.0):
        z, state = tx.update(jnp.array([size, 1.0], jnp.float16), state)
        assert jnp.all((z > 0) & (z < jnp.inf))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_chosen_matrices_take_no_memory_and_the_rest_is_adams():
    params = {"kernel": draw((4, 6)), "embedding": draw((8, 3)), "bias": draw((5,))}
    chosen = {"kernel": True, "embedding": False, "bias": False}
    adam = optax.scale_by_adam(b1=0.0)
    want, _ = adam.update(params, adam.init(params))
    for matrices in (chosen, lambda tree: {name: chosen[name] for name in tree}):
        tx = optax_nlcg.scale_by_orthogonalization(matrices)
        z, state = tx.update(params, tx.init(params))
        for name in ("embedding", "bias"):
            np.testing.assert_allclose(z[name], want[name], rtol=1e-5)
        np.testing.assert_allclose(z["kernel"], apply(params["kernel"]), rtol=1e-6)
        sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
        assert sizes == [1, 5, 24]
    # In `nlcg`, with no search: the direction, and this.
    optimizer = optax_nlcg.nlcg(
        0.1,
        preconditioner=optax_nlcg.scale_by_orthogonalization(),
        line_search=optax.identity(),
    )
    state = optimizer.init({"kernel": jnp.zeros((100, 100))})
    assert 10_000 <= sum(leaf.size for leaf in jax.tree.leaves(state)) < 10_020


@pytest.mark.parametrize(
    ("matrices", "error", "message"),
    [
        ({"w": 1}, TypeError, "`matrices` must be a tree of bools"),
        ("w", TypeError, "`matrices` must be a tree of bools"),
        (lambda params: {"w": "yes"}, TypeError, "`matrices` must be a tree of bools"),
        ({"w": True}, ValueError, r"shape \(3,\) and dtype float32: leave it out"),
        ({"v": True}, ValueError, "(?i)dict"),
    ],
)
def test_bad_choices(matrices, error, message):
    with pytest.raises(error, match=message):
        optax_nlcg.scale_by_orthogonalization(matrices).init({"w": jnp.ones(3)})
    complex_ones = {"w": jnp.ones((2, 2), jnp.complex64)}
    with pytest.raises(ValueError, match="dtype complex64: leave it out"):
        optax_nlcg.scale_by_orthogonalization({"w": True}).init(complex_ones)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ((0, 2), ValueError, r"has \(0, 2\) for an array of shape \(2, 3\)"),
        ((0, -2), ValueError, r"has \(0, -2\) for an array .* each once"),
        ((0, ()), ValueError, "at least one for rows and one for columns"),
        ((0, "1"), TypeError, "`matrices` must be a tree of bools or pairs"),
    ],
)
def test_bad_axes(choice, error, message):
    with pytest.raises(error, match=message):
        apply({"w": jnp.ones((2, 3))}, lambda params: {"w": choice})
    with pytest.raises(ValueError, match=r"shape \(3,\) and dtype float32: leave it"):
        apply({"w": jnp.ones(3)}, {"w": (0, 1)})


@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P()])
def test_sharded_under_jit(spec):
    gradient = draw((8, 12))
    split = jax.device_put(gradient, NamedSharding(make_mesh(), spec))
    got = jax.jit(apply)(split)
    np.testing.assert_allclose(got, apply(gradient), rtol=1e-3, atol=1e-5)
    assert got.sharding.is_equivalent_to(split.sharding, 2)


PARTS = {
    "rows": ((8, 12), P("e"), True),
    "more rows": ((8, 12), P("e", None), True),
    "taller": ((16, 8), P("e"), True),
    "taller in part alone": ((12, 16), P(None, "e"), True),
    "columns": ((8, 12), P(None, "e"), True),
    "both": ((6, 8), P("d", "e"), True),
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
    want = apply(whole, PART_CHOICES)
    compiled = jax.jit(lambda x: apply(x, PART_CHOICES)).lower(params).compile()
    got = compiled(params)
    for name, x in params.items():
        np.testing.assert_allclose(got[name], want[name], atol=1e-5, err_msg=name)
        assert jax.typeof(got[name]) == jax.typeof(x)
    kinds = [one.kind for one in collectives.read(compiled)]
    assert "all-to-all" in kinds
    if other == AxisType.Explicit:
        assert kinds.count("all-to-all") == 2 * (9 + 1)
        assert "all-gather" not in kinds


def test_matrices_that_are_split_by_hand_under_pmap():
    params = {"rows": draw((8, 12)), "columns": draw((12, 8)), "whole": draw((3, 4))}
    want = apply(params)
    specs = {"rows": P("d"), "columns": P(None, "d"), "whole": P()}
    tx = optax_nlcg.parallel.over_shards(optax_nlcg.scale_by_orthogonalization(), specs)
    parts = {
        "rows": np.stack(np.split(params["rows"], 4)),
        "columns": np.stack(np.split(params["columns"], 4, axis=1)),
        "whole": np.stack([params["whole"]] * 4),
    }
    got = jax.pmap(lambda x: tx.update(x, tx.init(x))[0], "d")(parts)
    for i in range(4):
        np.testing.assert_allclose(got["whole"][i], want["whole"], atol=1e-5)
    for name, axis in (("rows", 0), ("columns", 1)):
        whole = np.concatenate(list(got[name]), axis)
        np.testing.assert_allclose(whole, want[name], atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_parameters_that_are_no_matrices(dtype):
    """As in float32: squares of gradients need not fit, nor their slow average."""
    tx = optax_nlcg.scale_by_orthogonalization()
    gradients = jnp.asarray([[1e-3, 0, -2e-4, 200]] + 99 * [[1e-4, 0, 3e-4, 1]], dtype)
    states = {d: tx.init(gradients[0].astype(d)) for d in (dtype, jnp.float32)}
    for gradient in gradients:
        z = {}
        for d in states:
            z[d], states[d] = tx.update(gradient.astype(d), states[d])
        assert z[dtype].dtype == dtype
        np.testing.assert_allclose(
            z[dtype].astype(jnp.float32), z[jnp.float32], rtol=0.01
        )


def test_rank_promotion_may_be_an_error():
    with jax.numpy_rank_promotion("raise"):
        params = {"layers": draw((3, 4, 5)), "bias": draw((3,))}
        apply(params, {"layers": (1, 2), "bias": False})


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
    want = apply(params, MATRICES)
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
    want = apply(params, MATRICES)
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
        return on_all_devices(lambda x: apply(x, chosen, sharding))

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


def test_axes_of_stacks_must_be_of_the_right_kind():
    mesh = make_mesh()
    x = draw((4, 6))

    def by_hand(sharding):
        return jax.shard_map(
            lambda x: apply(x, None, sharding), mesh=mesh, in_specs=P(), out_specs=P()
        )

    with pytest.raises(ValueError, match="splits over 'd', which `shard_map` or `pmap"):
        jax.jit(by_hand(NamedSharding(mesh, P("d"))))(x)
    with pytest.raises(ValueError, match="no 'd' is mapped here: pass NamedSharding"):
        jax.jit(lambda x: apply(x, None, P("d")))(x)
    with pytest.raises(ValueError, match="no 'e' is mapped here: pass NamedSharding"):
        jax.jit(by_hand(P("e")))(x)


def test_masked_parameters_need_no_choice():
    params = {"kernel": draw((4, 6)), "frozen": draw((8, 3)), "bias": draw((5,))}
    chosen = {"kernel": True, "frozen": True, "bias": False}
    tx = optax.masked(
        optax_nlcg.scale_by_orthogonalization(chosen),
        {"kernel": True, "frozen": False, "bias": True},
    )
    z, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(z["frozen"], params["frozen"])
    np.testing.assert_allclose(z["kernel"], apply(params["kernel"]), rtol=1e-6)
    np.testing.assert_allclose(z["bias"], np.sign(params["bias"]), rtol=1e-5)
