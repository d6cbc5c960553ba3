"""Models of which `benchmarks.weak_scaling` compiles training steps.

Parameters are abstract: nothing is run, and nothing needs to fit where it is compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.resnet50 import ResNet50

LAYERS, WIDTH, HIDDEN, VOCABULARY, HEADS, TOKENS = 19, 2048, 8192, 32_768, 16, 2048


class Model(NamedTuple):
    """A model: abstract parameters, and the loss of a batch.

    Attributes:
        params: tree of shapes.
        inputs: what a device's part of the batch is made of.
        loss: `loss(params, inputs, by_batch)`, with `by_batch` a function that lays out
            an array by its first axis.
        stacked: whether leaves hold all layers, along their first axis.
    """

    params: Any
    inputs: Any
    loss: Callable[..., jax.Array]
    stacked: bool


def resnet50() -> Model:
    """ResNet-50 with one image of 224x224 per device, and batch normalisation."""
    network = ResNet50(1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    variables = jax.eval_shape(
        lambda key: network.init(key, jnp.zeros(images.shape), train=True),
        jax.random.key(0),
    )
    stats = variables["batch_stats"]

    def loss(params, batch, by_batch):
        del by_batch
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), stats)
        logits, _ = network.apply(
            {"params": params, "batch_stats": zeros},
            batch["images"],
            train=True,
            mutable=["batch_stats"],
        )
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross_entropy(logits, batch["labels"]))

    inputs = {"images": images, "labels": labels}
    return Model(variables["params"], inputs, loss, stacked=False)


def transformer() -> Model:
    """A decoder with one sequence of 2048 tokens per device, its layers in a loop."""

    def shape(*dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, jnp.float32)

    params = {
        "embedding": shape(VOCABULARY, WIDTH),
        "layers": {
            "scale": shape(LAYERS, 2, WIDTH),
            "qkv": shape(LAYERS, WIDTH, 3 * WIDTH),
            "mix": shape(LAYERS, WIDTH, WIDTH),
            "up": shape(LAYERS, WIDTH, HIDDEN),
            "down": shape(LAYERS, HIDDEN, WIDTH),
        },
    }

    def normalise(x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    def loss(params, batch, by_batch):
        tokens = batch["tokens"]

        def layer(x, weights):
            qkv = (weights["scale"][0] * normalise(x)) @ weights["qkv"]
            heads = qkv.reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
            mixed = jax.nn.dot_product_attention(
                heads[:, :, 0], heads[:, :, 1], heads[:, :, 2], is_causal=True
            )
            x = by_batch(x + mixed.reshape(x.shape) @ weights["mix"])
            up = (weights["scale"][1] * normalise(x)) @ weights["up"]
            return by_batch(x + jax.nn.gelu(up) @ weights["down"]), None

        x = by_batch(params["embedding"][tokens])
        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
        logits = by_batch(normalise(x) @ params["embedding"].T)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross_entropy(logits[:, :-1], tokens[:, 1:]))

    inputs = {"tokens": jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)}
    return Model(params, inputs, loss, stacked=True)


MODELS = {"resnet50": resnet50, "transformer": transformer}
