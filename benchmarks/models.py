"""Networks by name, and those for small images with batch normalisation.

Parameters and running statistics are float32; `dtype` is that of activations. Logits
are float32. Batch statistics are reduced in float32 whatever `dtype` is.
"""

import functools
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.resnet50 import ResNet50
from benchmarks.vit import ViT

BATCH_NORM_DECAY = 0.99
BATCH_NORM_EPSILON = 1e-5


class ResNet(nn.Module):
    """Pre-activation residual network (version 2) for 32x32 images.

    Three stages of n blocks of two 3x3 convolutions, 16, 32 and 64 channels wide, the
    second and third entered at stride 2; 6n + 2 layers in all. Where the shape changes
    the shortcut is a 1x1 convolution of the activated input.

    References:
      He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027.
    """

    depth: int
    num_classes: int
    dtype: jax.typing.DTypeLike = jnp.float32
    batch_norm_decay: float = BATCH_NORM_DECAY

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits (batch, num_classes) of standardised images (batch, ...)."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.batch_norm_decay,
            epsilon=BATCH_NORM_EPSILON,
            dtype=self.dtype,
        )
        x = conv(16, (3, 3))(images)
        for stage, channels in enumerate((16, 32, 64)):
            for block in range((self.depth - 2) // 6):
                strides = 2 if stage > 0 and block == 0 else 1
                activated = nn.relu(norm()(x))
                shortcut = x
                if strides > 1:
                    shortcut = conv(channels, (1, 1), strides=strides)(activated)
                y = conv(channels, (3, 3), strides=strides)(activated)
                y = conv(channels, (3, 3))(nn.relu(norm()(y)))
                x = shortcut + y
        x = nn.relu(norm()(x))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes)(x)


class MLP(nn.Module):
    """Fully connected network with batch normalisation, for 8x8 digits."""

    num_classes: int
    widths: Sequence[int] = (64, 64)
    dtype: jax.typing.DTypeLike = jnp.float32
    batch_norm_decay: float = BATCH_NORM_DECAY

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits (batch, num_classes) of standardised images (batch, ...)."""
        x = images.reshape(len(images), -1)
        for width in self.widths:
            x = nn.Dense(width, use_bias=False, dtype=self.dtype)(x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=self.batch_norm_decay,
                epsilon=BATCH_NORM_EPSILON,
                dtype=self.dtype,
            )(x)
            x = nn.relu(x)
        return nn.Dense(self.num_classes)(x.astype(jnp.float32))


Network = ResNet | ResNet50 | MLP | ViT


def build(name: str, num_classes: int, dtype: jax.typing.DTypeLike) -> Network:
    """Builds a network by name.

    "mlp"; "vit"; "resnet50", which is ImageNet's; or "resnet<depth>" with any other
    depth 6n + 2, which is `ResNet` for 32x32 images. That has no version of 50 layers
    under a name here, since everyone means ImageNet's by this one.
    """
    if name == "mlp":
        return MLP(num_classes, dtype=dtype)
    if name == "vit":
        return ViT(num_classes, dtype=dtype)
    if name == "resnet50":
        return ResNet50(num_classes, dtype=dtype)
    match = re.fullmatch(r"resnet(\d+)", name)
    if match and (depth := int(match[1])) >= 8 and depth % 6 == 2:
        return ResNet(depth, num_classes, dtype=dtype)
    raise ValueError(
        f"unknown model {name!r}; known: mlp, resnet50 (ImageNet's), resnet<6n+2> "
        "(resnet8, resnet32, for small images), vit"
    )


def squared_norm(params: nn.FrozenDict | dict) -> jax.Array:
    """Sums the squares of all parameters except those of normalisations."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(
        (
            jnp.sum(jnp.square(leaf))
            for path, leaf in leaves
            if "Norm" not in jax.tree_util.keystr(path)
        ),
        start=jnp.zeros(()),
    )


def platform_dtype(name: str) -> jnp.dtype:
    """Chooses the dtype of activations; "auto" is bfloat16 on accelerators.

    XLA's CPU backend emulates bfloat16 convolutions, at many times the cost of float32.
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be auto, float32 or bfloat16, got {name!r}")
    return jnp.dtype(name)
