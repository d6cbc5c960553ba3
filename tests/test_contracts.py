"""What every transformation of the library promises, whatever it computes."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import cases

DOUBLE = ("float64", "complex128")

pytestmark = pytest.mark.parametrize("name", cases.OPTIMIZERS)


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def assert_same(got, want, rtol=0.0, atol=0.0):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), got, want
    )


def test_trains(name):
    """Down to the minimum, or as far as a layer-wise rate of the authors' gets."""
    losses = cases.unwrapped(name, 40).losses
    assert losses[-1] < (0.3 if "lars" in name else 1e-3) * losses[0]
    assert np.isfinite(losses).all()
    _, step = cases.compiled(name)
    assert step._cache_size() == 1


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
def test_trains_in_other_dtypes(name, dtype):
    tx, params = cases.OPTIMIZERS[name](), cases.params_of(dtype)
    run = cases.train(name, tx, params, 12)
    assert run.losses[-1] < (0.8 if "lars" in name else 0.5) * run.losses[0]
    assert types(run.params) == types(run.updates) == types(params)
    assert types(run.state) == types(tx.init(params))
    for leaf in jax.tree.leaves((run.params, run.updates)):
        assert jnp.all(jnp.isfinite(leaf))


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed", *DOUBLE])
def test_types_are_kept(name, dtype):
    """Of updates and state; abstract values tell, so nothing need be compiled."""
    if (name, dtype) == ("multi_steps", "mixed"):
        return  # an error, see test_accumulation.py
    with jax.enable_x64(dtype in DOUBLE):
        tx, params = cases.OPTIMIZERS[name](), cases.params_of(dtype)
        init = tx.init(params)
        step = cases.make_step(name, tx)
        new_params, state, _, updates = jax.eval_shape(step, params, init)
        assert types(updates) == types(new_params) == types(params)
        assert types(state) == types(init)
        scalars = [
            leaf
            for leaf in jax.tree.leaves(state)
            if leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        wide = jnp.float64 if dtype in DOUBLE else jnp.float32
        assert all(leaf.dtype == wide for leaf in scalars)


def test_arrays_without_entries_and_gradients_of_another_dtype(name):
    """Updates are as wide as the parameters. Abstract, as above."""
    tx = cases.OPTIMIZERS[name]()
    params = cases.params_of("bfloat16") | {"none": jnp.ones((0, 2), jnp.bfloat16)}
    init = tx.init(params)
    # Other stages have no parameters to look at, or another one's state.
    wide = name in ("direction", "bfgs", "diagonal_given", "nlcg", "curvature")
    grads = optax.tree.cast(params, jnp.float32) if wide else params

    def step(grads, state):
        extra = cases.extra_args(name, params, jnp.float32(1), params)
        return tx.update(grads, state, params, **extra)

    updates, state = jax.eval_shape(step, grads, init)
    assert types(updates) == types(params)
    assert types(state) == types(init)


def test_strict_promotion(name):
    """Nothing here rests on dtypes that JAX would make equal.

    With parameters in float32: narrower ones meet scalars in float32, and mean to.
    """
    if name in ("orthogonalization", "multi_steps"):
        return  # Optax's scaling of what is no matrix and its averages do
    tx, params = cases.OPTIMIZERS[name](), cases.params_of()
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(cases.make_step(name, tx), params, tx.init(params))


def test_abstract_init(name):
    tx, params = cases.OPTIMIZERS[name](), cases.params_of()
    assert types(jax.eval_shape(tx.init, params)) == types(tx.init(params))


def test_donation_and_unknown_arguments(name):
    # Parameters and state are both given away: no buffer may serve twice.
    tx, params = cases.OPTIMIZERS[name](), cases.params_of()
    state = tx.init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    step = cases.make_step(name, tx, surprise=3.0, batch={"x": 1})
    step = cases.jit(step, donate_argnums=(0, 1))
    given = jax.tree.leaves(params)
    for _ in range(8):
        params, state, _, _ = step(params, state)
    assert all(leaf.is_deleted() for leaf in given)
    assert_same((params, state), cases.unwrapped(name)[:2], rtol=1e-5, atol=1e-5)


def test_scan_equals_loop_and_cond_keeps_the_state(name):
    tx, params = cases.OPTIMIZERS[name](), cases.params_of()
    step = cases.make_step(name, tx)

    def body(carry, even):
        # Every other step is taken in the other branch.
        def take(carry):
            return step(*carry)[:2]

        return jax.lax.cond(even, take, lambda carry: carry, carry), None

    carry = (params, tx.init(params))
    run = cases.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(16) % 2 == 0)[0])
    assert_same(run(carry)[0], cases.unwrapped(name).params, rtol=1e-4, atol=1e-5)


def two_lanes():
    """Parameters of two runs, those of the first as in a single one."""
    lanes = [cases.params_of(seed=seed) for seed in range(2)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)


def test_vmapped_lane_equals_single_run(name):
    tx = cases.OPTIMIZERS[name]()
    stacked = two_lanes()
    step = cases.jit(jax.vmap(cases.make_step(name, tx)))
    params, state = stacked, jax.vmap(tx.init)(stacked)
    for _ in range(8):
        params, state, _, _ = step(params, state)
    lane = jax.tree.map(operator.itemgetter(0), params)
    assert_same(lane, cases.unwrapped(name).params, rtol=1e-3, atol=1e-4)


def test_tree_map_params(name):
    """What is like the parameters in the state is found, and nothing else."""
    tx, params = cases.OPTIMIZERS[name](), cases.params_of()
    state = tx.init(params)
    marked = optax.tree.map_params(
        tx,
        lambda x: "like a parameter",
        state,
        transform_non_params=lambda x: "another",
    )
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    pairs = zip(jax.tree.leaves(marked), jax.tree.leaves(state), strict=True)
    for mark, leaf in pairs:
        if mark == "like a parameter":
            assert leaf.shape in shapes or name == "limited_memory_cg"
        else:
            assert leaf.shape in ((), (3,))  # scalars, and L-BFGS's weights


def test_explicit_mesh(name):
    """State and updates are typed like the parameters, with their sharding."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = cases.params_of()
        specs = {"w": P(None, "x"), "b": [P("x"), P()]}
        params = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs
        )
        tx = cases.OPTIMIZERS[name]()
        state = tx.init(params)
        step = cases.make_step(name, tx)
        new_params, new_state, _, updates = jax.eval_shape(step, params, state)
        for new, old in (
            (new_params, params),
            (updates, params),
            (new_state, state),
        ):
            pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
            for x, y in pairs:
                assert x.sharding.spec == jax.typeof(y).sharding.spec


def test_lanes_on_the_devices_of_an_explicit_mesh(name):
    """A member of an ensemble on each device, by `vmap` over an axis that is split."""
    tx = cases.OPTIMIZERS[name]()
    step = cases.jit(jax.vmap(cases.make_step(name, tx)))
    start = two_lanes()

    def train(params, state):
        for _ in range(2):
            params, state, _, _ = step(params, state)
        return params

    wanted = train(start, jax.vmap(tx.init)(start))
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = jax.device_put(
            (start, jax.vmap(tx.init)(start)), NamedSharding(mesh, P("x"))
        )
        assert_same(train(*split), wanted, rtol=1e-5, atol=1e-6)


def test_export_with_a_symbolic_shape(name):
    """One program for vectors of any length, as for Optax's own optimizers."""
    tx = cases.OPTIMIZERS[name]()
    step = cases.make_step(name, tx)

    def first_update(params):
        return step(params, tx.init(params))[3]

    shape = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(first_update))(
        {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    )
    params = {"w": jnp.array([0.5, 2.0, -1.0])}
    assert_same(exported.call(params), first_update(params), rtol=1e-6)


@pytest.mark.parametrize(
    "params",
    [{}, jnp.zeros(()), {"empty": jnp.ones((0, 3)), "none": None, "w": jnp.zeros(2)}],
    ids=["empty", "scalar", "empty leaf"],
)
def test_degenerate_trees(name, params):
    tx = cases.OPTIMIZERS[name]()
    step = cases.jit(cases.make_step(name, tx))
    state = tx.init(params)
    for _ in range(2):
        params, state, _, updates = step(params, state)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        for leaf in jax.tree.leaves((params, updates)):
            assert jnp.all(jnp.isfinite(leaf))


def test_trees_of_python_floats(name):
    """As Optax's optimizers take them; the updates are those of arrays."""
    tx, floats = cases.OPTIMIZERS[name](), {"a": 2.0, "b": 0.5}

    def updates_of(params):
        state = tx.init(params)
        for size in (1.0, 0.5):
            grads = jax.tree.map(lambda x, size=size: size * x, params)
            extra = {"value": size, "grad": grads, "value_fn": cases.loss}
            updates, state = tx.update(
                grads, state, params, hessian_diagonal=params, **extra
            )
        return updates

    got, want = updates_of(floats), updates_of(jax.tree.map(jnp.asarray, floats))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), got, want)


def test_a_checkpoint_in_the_middle_changes_nothing(name, tmp_path):
    """What Orbax restores into the abstract state continues to the last bit."""
    run = cases.unwrapped(name)
    tx, step = cases.compiled(name)
    saved = {"params": run.params, "state": run.state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", saved)
        checkpointer.wait_until_finished()
        params = cases.params_of()
        abstract = jax.eval_shape(lambda p: {"params": p, "state": tx.init(p)}, params)
        restored = checkpointer.restore(tmp_path / "checkpoint", abstract)
    want = step(run.params, run.state)
    got = step(restored["params"], restored["state"])
    jax.tree.map(np.testing.assert_array_equal, got, want)
