"""The benchmarks' networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import metrics, models, resnet50


def shapes(model, image_shape):
    images = jax.ShapeDtypeStruct((2, *image_shape), model.dtype)

    def init(key, x):
        return model.init(key, x, train=True)

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


def taps(size, kernel, stride, padding):
    """Input pixels under a kernel, over all its places along one side."""
    places = np.arange((size + 2 * padding - kernel) // stride + 1) * stride - padding
    pixels = places[:, None] + np.arange(kernel)
    return np.sum((pixels >= 0) & (pixels < size)), pixels.size


def multiply_adds(size):
    """Of ResNet-50, layer by layer from table 1 of the paper, for one image.

    Returns:
      Without those of padding, and with them, as is usual.
    """
    total = np.zeros(2)

    def conv(size, inputs, outputs, kernel=1, stride=1):
        nonlocal total
        along = np.array(taps(size, kernel, stride, kernel // 2))
        total = total + along**2 * inputs * outputs

    conv(size, 3, 64, 7, 2)
    size, inputs = size // 4, 64
    for stage, (channels, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            stride = 2 if stage and block == 0 else 1
            conv(size, inputs, channels)
            conv(size, channels, channels, 3, stride)  # the stride is here: v1.5
            if block == 0:
                conv(size, inputs, 4 * channels, 1, stride)
            size, inputs = size // stride, 4 * channels
            conv(size, channels, inputs)
    return total + inputs * 1000


def test_resnet50_has_the_published_size_and_cost():
    model = models.build("resnet50", 1000, jnp.bfloat16)
    variables, logits = shapes(model, (224, 224, 3))
    assert count(variables["params"]) == 25_557_032
    assert logits.shape == (2, 1000)
    assert logits.dtype == jnp.float32
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), model.dtype)
    program = jax.jit(lambda v, x: model.apply(v, x, train=False))
    flops = metrics.flops(program.lower(variables, image))
    counted, published = multiply_adds(224)
    assert published == pytest.approx(4.09e9, rel=1e-3)
    # XLA leaves out padding, and counts normalisation, pooling and the like besides.
    assert 2 * counted < flops < 1.02 * 2 * counted


@pytest.mark.parametrize(("inputs", "strides"), [(16, 1), (8, 2)])
def test_bottleneck_starts_as_its_shortcut(inputs, strides):
    block = resnet50.Bottleneck(4, strides, jnp.float32, batch_norm_decay=0.9)
    x = jax.random.uniform(jax.random.key(0), (2, 6, 6, inputs))
    init = jax.jit(lambda x: block.init(jax.random.key(1), x, train=True))
    variables = init(x)
    apply = partial(block.apply, train=True, mutable=["batch_stats"])
    y, _ = jax.jit(apply)(variables, x)
    assert y.shape == (2, 6 // strides, 6 // strides, 16)
    if inputs == 16 and strides == 1:
        np.testing.assert_array_equal(y, x)
        return
    kernel = variables["params"]["Conv_3"]["kernel"]
    shortcut = jnp.einsum("bhwi,io->bhwo", x[:, ::strides, ::strides], kernel[0, 0])
    centred = shortcut - shortcut.mean((0, 1, 2))
    expected = jax.nn.relu(centred / jnp.sqrt(shortcut.var((0, 1, 2)) + 1e-5))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_l2_leaves_out_batch_norm_of_resnet50():
    variables, _ = shapes(models.build("resnet50", 1000, jnp.float32), (32, 32, 3))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape), variables["params"])
    # Each normalised channel has a running mean and variance, a scale and a bias.
    norms = count(variables["batch_stats"])
    squared_norm = jax.jit(models.squared_norm)(ones)
    np.testing.assert_allclose(squared_norm, 25_557_032 - norms, rtol=1e-6)


def test_resnet_of_50_layers_is_imagenets():
    assert isinstance(models.build("resnet50", 10, jnp.float32), resnet50.ResNet50)
    assert isinstance(models.build("resnet56", 10, jnp.float32), models.ResNet)


@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("resnet8", (32, 32, 3)),
        ("resnet50", (64, 64, 3)),
        ("mlp", (8, 8, 1)),
        ("vit", (16, 16, 3)),
    ],
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


def test_l2_leaves_out_normalisations():
    params = {
        "Dense_0": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)},
        "BatchNorm_0": {"scale": jnp.full(3, 100.0), "bias": jnp.full(3, 100.0)},
        "Block_0": {"LayerNorm_0": {"scale": jnp.full(3, 100.0)}},
    }
    np.testing.assert_allclose(models.squared_norm(params), 6 * 4 + 3)


def test_dtype_is_chosen_by_platform():
    assert models.platform_dtype("auto") == jnp.float32  # These tests run on CPUs.
    assert models.platform_dtype("bfloat16") == jnp.bfloat16
    with pytest.raises(ValueError, match="got 'float16'"):
        models.platform_dtype("float16")
