"""Hessian-diagonal estimators across devices."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_nlcg.curvature import value_grad_and_hessian_diagonal

NUM_DEVICES = 8
METHODS = ("hutchinson", "gauss_newton_bartlett", "exact")
MODES = ("check_vma", "no_check_vma", "pmap")

pytestmark = pytest.mark.skipif(
    jax.device_count() < NUM_DEVICES, reason="needs 8 (virtual) devices"
)


def make_problem(batch=16):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "in": jax.random.normal(keys[0], (3, 4)) / 2,
        "out": jax.random.normal(keys[1], (4, 3)),
    }
    x = jax.random.normal(keys[2], (batch, 3))
    y = jax.random.randint(keys[3], (batch,), 0, 3)
    return params, x, y


def loss_and_logits(params, x, y):
    logits = jnp.tanh(x @ params["in"]) @ params["out"]
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, y[:, None], axis=1).mean(), logits


def make_evaluate(method, *, axis_name=None, num_probes=1):
    def fun(*args):
        value, logits = loss_and_logits(*args)
        return value, (
            (logits, logits) if method == "gauss_newton_bartlett" else logits
        )

    return value_grad_and_hessian_diagonal(
        fun, method=method, num_probes=num_probes, has_aux=True, axis_name=axis_name
    )


def mesh():
    return jax.make_mesh((NUM_DEVICES,), ("batch",), axis_types=(AxisType.Auto,))


def over_devices(function, mode):
    """Runs ``function(params, x, y, key)`` on every device's part of the batch.

    What it returns must be equal on all devices.
    """
    if mode == "pmap":
        mapped = jax.pmap(function, axis_name="batch", in_axes=(None, 0, 0, None))

        def split(a):
            return a.reshape(NUM_DEVICES, -1, *a.shape[1:])

        def run(params, x, y, key):
            out = mapped(params, split(x), split(y), key)
            for leaf in jax.tree.leaves(out):
                for copy in leaf[1:]:
                    np.testing.assert_array_equal(copy, leaf[0])
            return jax.tree.map(lambda a: a[0], out)

        return run
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh(),
            in_specs=(P(), P("batch"), P("batch"), P()),
            out_specs=P(),
            check_vma=mode == "check_vma",
        )
    )


def assert_close(got, want, rtol=1e-4, atol=1e-6):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, want
    )


@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_sharded_batch_under_jit_gives_the_global_result(method, num_probes):
    params, x, y = make_problem()
    key = jax.random.key(1)
    evaluate = jax.jit(make_evaluate(method, num_probes=num_probes))
    want = evaluate(params, x, y, key=key)
    devices = mesh()
    by_batch = NamedSharding(devices, P("batch"))
    replicated = NamedSharding(devices, P())
    got = evaluate(
        jax.device_put(params, replicated),
        jax.device_put(x, by_batch),
        jax.device_put(y, by_batch),
        key=jax.device_put(key, replicated),
    )
    assert_close(got, want)


@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_devices_draw_their_own_probes_and_average_the_product(
    mode, method, num_probes
):
    """The same, computed for each device's part of the batch on one device."""
    params, x, y = make_problem()
    key = jax.random.key(1)
    local = make_evaluate(method, axis_name="batch", num_probes=num_probes)

    def step(params, x, y, key):
        (value, _), grads, diagonal = local(params, x, y, key=key)
        return value, grads, diagonal

    got = over_devices(step, mode)(params, x, y, key)

    single = jax.jit(make_evaluate(method, num_probes=num_probes))
    size = len(x) // NUM_DEVICES
    parts = []
    for device in range(NUM_DEVICES):
        rows = slice(device * size, (device + 1) * size)
        (value, _), grads, diagonal = single(
            params, x[rows], y[rows], key=jax.random.fold_in(key, device)
        )
        parts.append((value, grads, diagonal))
    want = jax.tree.map(lambda *leaves: sum(leaves) / NUM_DEVICES, *parts)
    assert_close(got, want)

    (value, _), grads, diagonal = jax.jit(make_evaluate("exact"))(params, x, y)
    assert_close(got[:2], (value, grads))
    if method == "exact":
        assert_close(got[2], diagonal)


@pytest.mark.parametrize("mode", MODES)
def test_variance_falls_with_the_number_of_devices(mode):
    """Every device holds the same batch, so that only the probes differ."""
    params, x, y = make_problem(batch=4)
    x, y = jnp.tile(x, (NUM_DEVICES, 1)), jnp.tile(y, NUM_DEVICES)
    num_keys = 1000
    local = make_evaluate("hutchinson", axis_name="batch")

    def sample(params, x, y, key):
        def one(i):
            _, _, diagonal = local(params, x, y, key=jax.random.fold_in(key, i))
            return jnp.concatenate([d.ravel() for d in jax.tree.leaves(diagonal)])

        return jax.lax.map(one, jnp.arange(num_keys))

    samples = np.asarray(over_devices(sample, mode)(params, x, y, jax.random.key(2)))
    samples = samples.astype(np.float64)

    sizes = [p.size for p in jax.tree.leaves(params)]
    flat = jnp.concatenate([p.ravel() for p in jax.tree.leaves(params)])

    def flat_loss(flat):
        leaves = jnp.split(flat, np.cumsum(sizes)[:-1])
        tree = {"in": leaves[0].reshape(3, 4), "out": leaves[1].reshape(4, 3)}
        return loss_and_logits(tree, x, y)[0]

    hessian = np.asarray(jax.hessian(flat_loss)(flat), np.float64)
    diagonal = np.diag(hessian)
    variance = ((hessian - np.diag(diagonal)) ** 2).sum(axis=1) / NUM_DEVICES

    centred = samples - samples.mean(axis=0)
    second, fourth = (centred**2).mean(axis=0), (centred**4).mean(axis=0)
    mean_error = np.sqrt(second / num_keys)
    variance_error = np.sqrt((fourth - second**2) / num_keys)
    np.testing.assert_array_less(
        np.abs(samples.mean(axis=0) - diagonal), 5 * mean_error + 1e-6
    )
    np.testing.assert_array_less(np.abs(second - variance), 5 * variance_error + 1e-7)


def test_a_loss_averaged_by_the_user_gives_the_global_product():
    """Without `axis_name`, one probe: `shard_map` sums gradient and Hv by itself."""
    params, x, y = make_problem()
    key = jax.random.key(1)

    def fun(params, x, y):
        return jax.lax.pmean(loss_and_logits(params, x, y)[0], "batch")

    evaluate = value_grad_and_hessian_diagonal(fun)
    got = over_devices(lambda *a: evaluate(*a[:3], key=a[3]), "check_vma")(
        params, x, y, key
    )
    (value, _), grads, diagonal = make_evaluate("hutchinson")(params, x, y, key=key)
    assert_close(got, (value, grads, diagonal))


def test_the_auxiliary_output_stays_local():
    params, x, y = make_problem()
    local = make_evaluate("hutchinson", axis_name="batch")
    step = jax.jit(
        jax.shard_map(
            lambda p, x, y, k: local(p, x, y, key=k)[0][1],
            mesh=mesh(),
            in_specs=(P(), P("batch"), P("batch"), P()),
            out_specs=P("batch"),
        )
    )
    logits = step(params, x, y, jax.random.key(0))
    assert_close(logits, loss_and_logits(params, x, y)[1])


@pytest.mark.parametrize("axes", [("batch",), ["batch"]])
def test_axes_may_come_in_a_sequence(axes):
    params, x, y = make_problem()
    local = make_evaluate("exact", axis_name=axes)

    def step(params, x, y, key):
        return local(params, x, y, key=key)[2]

    got = over_devices(step, "check_vma")(params, x, y, jax.random.key(0))
    assert_close(got, make_evaluate("exact")(params, x, y)[2])


def test_parameters_may_be_marked_as_varying_already():
    params, x, y = make_problem()
    local = make_evaluate("exact", axis_name="batch")

    def step(params, x, y, key):
        params = jax.lax.pcast(params, "batch", to="varying")
        return local(params, x, y)[2]  # which draws nothing

    got = over_devices(step, "check_vma")(params, x, y, jax.random.key(0))
    assert_close(got, make_evaluate("exact")(params, x, y)[2])


@pytest.mark.parametrize(
    ("compiled", "context"),
    [(True, True), (True, False), (False, True)],
    ids=["jit", "jit, no set_mesh", "eager"],
)
@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_on_an_explicit_mesh(method, num_probes, compiled, context):
    """The same as without a mesh, split like the parameters."""
    labels = jax.nn.one_hot(jnp.arange(NUM_DEVICES) % 3, 3)

    def fun(params):
        logits = params["w"] * params["scale"]
        loss = -jnp.sum(labels * jax.nn.log_softmax(logits)) / NUM_DEVICES
        return (loss, logits) if method == "gauss_newton_bartlett" else loss

    def evaluate(params):
        estimate = value_grad_and_hessian_diagonal(
            fun, method=method, num_probes=num_probes
        )
        return estimate(params, key=jax.random.key(1))

    params = {"w": jax.random.normal(jax.random.key(0), (8, 3)), "scale": jnp.ones(())}
    expected = evaluate(params)
    explicit = jax.make_mesh((NUM_DEVICES,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit) if context else contextlib.nullcontext():
        specs = {"w": P("d", None), "scale": P()}
        params = {
            name: jax.device_put(leaf, NamedSharding(explicit, specs[name]))
            for name, leaf in params.items()
        }
        result = (jax.jit(evaluate) if compiled else evaluate)(params)
        assert jax.typeof(result[2]["w"]).sharding.spec == specs["w"]
    for got, want in zip(
        jax.tree.leaves(result), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
