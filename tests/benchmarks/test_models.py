"""The benchmarks' networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import models


def shapes(model, image_shape):
    images = jax.ShapeDtypeStruct((2, *image_shape), model.dtype)
    init = lambda key, x: model.init(key, x, train=True)  # noqa: E731
    variables = jax.eval_shape(init, jax.random.key(0), images)
    logits = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False), variables, images
    )
    return variables, logits


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_resnet32_has_the_published_size():
    convolutions = 27 * 16 + 9 * (
        (10 * 16 * 16)
        + (16 * 32 + 9 * 32 * 32)
        + (32 * 64 + 9 * 64 * 64)
    )  # fmt: skip
    shortcuts = 16 * 32 + 32 * 64
    # Two a block, of the block's input and of its middle, and one at the end.
    norms = 2 * (10 * 16 + (16 + 9 * 32) + (32 + 9 * 64) + 64)
    variables, _ = shapes(models.build("resnet32", 100, jnp.float32), (32, 32, 3))
    expected = convolutions + shortcuts + norms + 64 * 100 + 100
    assert count(variables["params"]) == expected == 472_564
    assert count(variables["batch_stats"]) == norms


@pytest.mark.parametrize(
    ("name", "image_shape"), [("resnet8", (32, 32, 3)), ("mlp", (8, 8, 1))]
)
def test_parameters_statistics_and_logits_are_float32(name, image_shape):
    variables, logits = shapes(models.build(name, 10, jnp.bfloat16), image_shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet", "resnet31", "resnet2", "vgg"])
def test_unknown_model_is_refused(name):
    with pytest.raises(ValueError, match="known: mlp, resnet"):
        models.build(name, 10, jnp.float32)


def test_l2_leaves_out_batch_norm():
    params = {
        "Dense_0": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)},
        "BatchNorm_0": {"scale": jnp.full(3, 100.0), "bias": jnp.full(3, 100.0)},
    }
    np.testing.assert_allclose(models.squared_norm(params), 6 * 4 + 3)


def test_dtype_is_chosen_by_platform():
    assert models.platform_dtype("auto") == jnp.float32  # These tests run on CPUs.
    assert models.platform_dtype("bfloat16") == jnp.bfloat16
    with pytest.raises(ValueError, match="got 'float16'"):
        models.platform_dtype("float16")
