"""Hessian-diagonal estimators against exact matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from optax_nlcg.curvature import hessian_diagonal, value_grad_and_hessian_diagonal

METHODS = ("hutchinson", "gauss_newton_bartlett", "exact")


def make_mlp(seed=0, inputs=5, hidden=4, classes=3, batch=6):
    """A small softmax network: its parameters, its batch, and the loss with logits."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "in": jax.random.normal(keys[0], (inputs, hidden)) / 2,
        "bias": jnp.zeros(hidden),
        "out": jax.random.normal(keys[1], (hidden, classes)),
    }
    x = jax.random.normal(keys[2], (batch, inputs))
    y = jax.random.randint(keys[3], (batch,), 0, classes)
    return params, (x, y)


def mlp_logits(params, x):
    return jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]


def mlp_loss(params, x, y):
    logits = mlp_logits(params, x)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, y[:, None], axis=1).mean(), logits


def loss_only(params, x, y):
    return mlp_loss(params, x, y)[0]


def flat_hessian(fun, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda p: fun(unravel(p))))(flat))


def flat_gauss_newton(params, x):
    """Gauss-Newton matrix of the mean cross-entropy, by the logits' Jacobian."""
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jacobian(lambda p: mlp_logits(unravel(p), x))(flat)
    p = jax.nn.softmax(mlp_logits(params, x))
    middle = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    return np.asarray(jnp.einsum("bcn,bcd,bdm->nm", jacobian, middle, jacobian)) / len(
        x
    )


def draws(fun, params, num_keys, **options):
    """Independent estimates, one a row."""
    keys = jax.random.split(jax.random.key(7), num_keys)

    def draw(key):
        diagonal = hessian_diagonal(fun, params, key, **options)
        return ravel_pytree(diagonal)[0]

    return np.asarray(jax.jit(jax.vmap(draw))(keys), np.float64)


def assert_mean(samples, expected, sigmas=5.0):
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert (error > 0).any()
    np.testing.assert_array_less(
        np.abs(samples.mean(axis=0) - expected), sigmas * error + 1e-6
    )


def assert_variance(samples, expected, sigmas=5.0):
    """Compares with the standard error of a sample variance."""
    centred = samples - samples.mean(axis=0)
    second, fourth = (centred**2).mean(axis=0), (centred**4).mean(axis=0)
    error = np.sqrt(np.maximum(fourth - second**2, 0) / len(samples))
    np.testing.assert_array_less(np.abs(second - expected), sigmas * error + 1e-6)


def test_exact_is_the_diagonal_of_jax_hessian():
    params, batch = make_mlp()
    diagonal = hessian_diagonal(lambda p: loss_only(p, *batch), params, method="exact")
    expected = np.diag(flat_hessian(lambda p: loss_only(p, *batch), params))
    flat = ravel_pytree(diagonal)[0]
    np.testing.assert_allclose(flat, expected, rtol=1e-4, atol=1e-6)
    assert jax.tree.map(jnp.shape, diagonal) == jax.tree.map(jnp.shape, params)


def test_exact_with_a_leaf_without_entries():
    params = {"none": jnp.zeros((0, 3)), "x": jnp.array(2.0)}
    diagonal = hessian_diagonal(
        lambda p: p["x"] ** 3 + jnp.sum(p["none"]), params, method="exact"
    )
    assert diagonal["none"].shape == (0, 3)
    np.testing.assert_allclose(diagonal["x"], 12)


@pytest.mark.parametrize("num_probes", [1, 4])
def test_hutchinson_has_the_right_mean_and_variance(num_probes):
    params, batch = make_mlp()

    def fun(p):
        return loss_only(p, *batch)

    hessian = flat_hessian(fun, params)
    samples = draws(fun, params, 4000, num_probes=num_probes)
    assert_mean(samples, np.diag(hessian))
    off_diagonal = hessian - np.diag(np.diag(hessian))
    assert_variance(samples, (off_diagonal**2).sum(axis=1) / num_probes)


@pytest.mark.parametrize("num_probes", [1, 4])
def test_gauss_newton_bartlett_has_the_right_mean_and_sign(num_probes):
    params, (x, y) = make_mlp()
    samples = draws(
        lambda p: mlp_loss(p, x, y),
        params,
        4000,
        method="gauss_newton_bartlett",
        num_probes=num_probes,
    )
    assert_mean(samples, np.diag(flat_gauss_newton(params, x)))
    assert (samples >= 0).all()


def test_gauss_newton_bartlett_counts_every_leading_axis_as_samples():
    """Logits of shape [batch, time, classes], as of a language model."""
    params, (x, y) = make_mlp(batch=6)

    def fun(p):
        value, logits = mlp_loss(p, x, y)
        return value, logits.reshape(2, 3, -1)

    samples = draws(fun, params, 2000, method="gauss_newton_bartlett")
    assert_mean(samples, np.diag(flat_gauss_newton(params, x)))


def test_one_probe_is_exact_for_a_diagonal_hessian():
    scale = {"a": jnp.array([1.0, -3.0]), "b": jnp.array(1e-3)}
    params = jax.tree.map(jnp.ones_like, scale)

    def fun(p):
        return sum(
            jnp.sum(s * x**2) / 2
            for s, x in zip(*map(jax.tree.leaves, (scale, p)), strict=True)
        )

    diagonal = hessian_diagonal(fun, params, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, diagonal, scale)


@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_value_gradient_and_auxiliary_output_are_those_of_one_evaluation(
    method, num_probes
):
    """Dropout and batch statistics: all results come from the same masks and batch."""
    params, (x, y) = make_mlp(batch=8)

    def fun(p, x, y, dropout_key):
        hidden = jnp.tanh(x @ p["in"] + p["bias"])
        statistics = hidden.mean(axis=0), hidden.var(axis=0)
        hidden = (hidden - statistics[0]) / jnp.sqrt(statistics[1] + 1e-5)
        hidden = hidden * jax.random.bernoulli(dropout_key, 0.5, hidden.shape)
        logits = hidden @ p["out"]
        log_p = jax.nn.log_softmax(logits)
        value = -jnp.take_along_axis(log_p, y[:, None], axis=1).mean()
        aux = {"statistics": statistics, "count": jnp.int32(3)}
        return value, ((logits, aux) if method == "gauss_newton_bartlett" else aux)

    def plain(*args):
        value, aux = fun(*args)
        return value, aux[1] if method == "gauss_newton_bartlett" else aux

    dropout_key = jax.random.key(11)
    evaluate = value_grad_and_hessian_diagonal(
        fun, method=method, num_probes=num_probes, has_aux=True
    )
    got = jax.jit(evaluate)(params, x, y, dropout_key, key=jax.random.key(0))
    want = jax.value_and_grad(plain, has_aux=True)(params, x, y, dropout_key)
    assert jax.tree.structure(got[:2]) == jax.tree.structure(want)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        got[:2],
        want,
    )

    if method == "exact":
        hessian = flat_hessian(lambda p: plain(p, x, y, dropout_key)[0], params)
        flat = ravel_pytree(got[2])[0]
        np.testing.assert_allclose(flat, np.diag(hessian), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_results_keep_the_dtype_of_the_parameters(method, num_probes, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = {"w": jnp.ones((3, 2), dtype), "b": jnp.zeros((), dtype)}
        x = jnp.arange(12.0).reshape(4, 3).astype(dtype) / 12

        def fun(p):
            logits = x @ p["w"] + p["b"]
            value = jax.nn.logsumexp(logits, axis=-1).mean()
            return (value, logits) if method == "gauss_newton_bartlett" else value

        evaluate = value_grad_and_hessian_diagonal(
            fun, method=method, num_probes=num_probes
        )
        value, grads, diagonal = jax.jit(evaluate)(params, key=jax.random.key(0))
        assert value.dtype == jnp.dtype(dtype)
        for tree in (grads, diagonal):
            assert jax.tree.map(lambda x: x.dtype, tree) == jax.tree.map(
                lambda x: x.dtype, params
            )
        assert all(jnp.isfinite(d).all() for d in jax.tree.leaves(diagonal))


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        scale = jnp.array([1.0, 1e-12])

        def fun(p):
            return jnp.sum(scale * p**2) / 2 + p[0] ** 3

        params = jnp.array([1e-9, 1.0])
        diagonal = hessian_diagonal(fun, params, jax.random.key(0), num_probes=3)
        np.testing.assert_allclose(diagonal, [1 + 6e-9, 1e-12], rtol=1e-14)


def test_many_probes_in_low_precision():
    """A sum of ones in bfloat16 stops growing at 256."""
    diagonal = hessian_diagonal(
        lambda p: jnp.sum(p**2) / 2,
        jnp.ones(2, jnp.bfloat16),
        jax.random.key(0),
        num_probes=300,
    )
    np.testing.assert_array_equal(diagonal.astype(float), 1)


def test_squares_of_small_gradients_in_low_precision():
    """Those of a half over 4096 samples vanish in float16; times 4096 they do not."""
    diagonal = hessian_diagonal(
        lambda logits: (jax.nn.logsumexp(logits, axis=1).mean(), logits),
        jnp.zeros((4096, 2), jnp.float16),
        jax.random.key(0),
        method="gauss_newton_bartlett",
    )
    np.testing.assert_array_equal(diagonal.astype(float), 2.0**-14)


def test_a_sure_model_in_low_precision():
    """In bfloat16 the probability of its label would be one."""
    logits = jnp.array([[7.0, 0.0]], jnp.bfloat16)
    diagonal = hessian_diagonal(
        lambda logits: (jax.nn.logsumexp(logits), logits),
        logits,
        jax.random.key(0),
        method="gauss_newton_bartlett",
    )
    np.testing.assert_allclose(
        diagonal.astype(float), (1 + np.exp(7)) ** -2.0, rtol=2e-2
    )


def complex_loss(z):
    """Not holomorphic, with different curvature in real and imaginary parts."""
    matrix = jnp.array([[1.0, 0.5j], [0.3, 2.0 - 1.0j]])
    return jnp.sum(jnp.abs(matrix @ z) ** 2 + z.real**4 + 3 * z.imag**2 * z.real)


@pytest.mark.parametrize("method", ["hutchinson", "exact"])
def test_a_complex_parameter_stands_for_two_real_ones(method):
    z = jnp.array([0.4 - 0.7j, 1.1 + 0.2j])
    stacked = jnp.stack([z.real, z.imag])

    def as_real(s):
        return complex_loss(jax.lax.complex(s[0], s[1]))

    expected = hessian_diagonal(as_real, stacked, method="exact")
    if method == "exact":
        diagonal = hessian_diagonal(complex_loss, z, method="exact")
        assert diagonal.dtype == z.dtype
        np.testing.assert_allclose(diagonal.real, expected[0], rtol=1e-5)
        np.testing.assert_allclose(diagonal.imag, expected[1], rtol=1e-5)
    else:
        keys = jax.random.split(jax.random.key(1), 4000)

        def one(k):
            return hessian_diagonal(complex_loss, z, k, num_probes=2)

        samples = np.asarray(jax.jit(jax.vmap(one))(keys))
        parts = np.concatenate([samples.real, samples.imag], axis=1)
        assert_mean(parts, expected.ravel())


def test_gauss_newton_bartlett_with_complex_parameters():
    keys = jax.random.split(jax.random.key(0), 3)
    real, imag = jax.random.normal(keys[0], (2, 3, 4))
    x = jax.lax.complex(*jax.random.normal(keys[1], (2, 5, 3)))
    y = jnp.array([0, 1, 2, 3, 0])

    def fun(stacked):
        logits = (x @ jax.lax.complex(stacked[0], stacked[1])).real
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, y[:, None], axis=1).mean(), logits

    def complex_fun(w):
        return fun(jnp.stack([w.real, w.imag]))

    key = jax.random.key(4)
    options = {"method": "gauss_newton_bartlett"}
    split = hessian_diagonal(fun, jnp.stack([real, imag]), key, **options)
    joint = hessian_diagonal(complex_fun, jax.lax.complex(real, imag), key, **options)
    np.testing.assert_allclose(joint.real, split[0], rtol=1e-5)
    np.testing.assert_allclose(joint.imag, split[1], rtol=1e-5)


def test_a_loss_with_its_own_backward_pass_is_fine():
    """Forward over reverse differentiates the rule itself and needs no other."""

    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
    params = jnp.array([1.0, -2.0])
    diagonal = hessian_diagonal(lambda p: cube(p).sum(), params, jax.random.key(0))
    np.testing.assert_allclose(diagonal, 6 * params)


def test_keys_decide_the_probes():
    params, batch = make_mlp()

    def fun(p):
        return loss_only(p, *batch)

    one, same, other = (
        hessian_diagonal(fun, params, jax.random.key(seed))["in"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def compiled(method, num_probes=1, size=64):
    """The compiled evaluation for a network large enough for matmuls to dominate."""
    params, (x, y) = make_mlp(inputs=size, hidden=size, classes=10, batch=size)
    fun = mlp_loss if method == "gauss_newton_bartlett" else loss_only
    evaluate = value_grad_and_hessian_diagonal(
        fun, method=method, num_probes=num_probes
    )
    arguments = (params, x, y)
    return jax.jit(evaluate).lower(*arguments, key=jax.random.key(0)).compile()


def test_memory_does_not_grow_with_the_number_of_probes():
    few, many = (
        compiled("hutchinson", n).memory_analysis().temp_size_in_bytes for n in (2, 32)
    )
    assert few > 0
    assert many <= 1.01 * few


@pytest.mark.parametrize(
    ("method", "most"), [("hutchinson", 3.1), ("gauss_newton_bartlett", 1.8)]
)
def test_one_estimate_costs_few_gradients(method, most):
    params, (x, y) = make_mlp(inputs=64, hidden=64, classes=10, batch=64)
    gradient = jax.jit(jax.value_and_grad(loss_only)).lower(params, x, y).compile()
    assert (
        compiled(method).cost_analysis()["flops"]
        <= most * gradient.cost_analysis()["flops"]
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "lanczos"}, ValueError, "`method` must be one of 'hutchinson'"),
        (
            {"num_probes": 0},
            ValueError,
            r"`num_probes` must be an integer in \[1, inf\], got 0",
        ),
        ({"num_probes": 1.0}, TypeError, "`num_probes` must be an integer, got 1.0"),
        ({"num_probes": True}, TypeError, "`num_probes` must be an integer, got True"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        value_grad_and_hessian_diagonal(jnp.sum, **options)


def test_arguments_by_name_reach_the_function():
    evaluate = value_grad_and_hessian_diagonal(lambda x, *, power: jnp.sum(x**power))
    value, grads, diagonal = evaluate(jnp.ones(2), power=3, key=jax.random.key(0))
    assert value == 2
    np.testing.assert_allclose(grads, 3.0)
    np.testing.assert_allclose(diagonal, 6.0)


@pytest.mark.parametrize("method", ["hutchinson", "exact"])
def test_parameters_without_derivatives_are_named(method):
    params = {"w": jnp.ones(2), "n": jnp.arange(2)}
    with pytest.raises(TypeError, match=r"`params\['n'\]` must be floating point"):
        hessian_diagonal(
            lambda p: jnp.sum(p["w"]), params, jax.random.key(0), method=method
        )


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="'hutchinson' draws random probes"):
        hessian_diagonal(jnp.sum, jnp.ones(2))


@pytest.mark.parametrize("has_aux", [False, True])
@pytest.mark.parametrize(
    "out",
    [lambda p: p.sum(), lambda p: (p.sum(), 1.0), lambda p: (p.sum(), p.sum())],
)
def test_missing_logits_are_named(out, has_aux):
    evaluate = value_grad_and_hessian_diagonal(
        out, method="gauss_newton_bartlett", has_aux=has_aux
    )
    with pytest.raises(TypeError, match=r"return `\(value, .*logits.*\)`"):
        evaluate(jnp.ones(2), key=jax.random.key(0))
