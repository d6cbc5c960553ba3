"""ResNet-50 for ImageNet, in the version that is called v1.5.

Parameters, running statistics and logits are float32; `dtype` is that of activations.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

BLOCKS = (3, 4, 6, 3)
BATCH_NORM_DECAY = 0.9
BATCH_NORM_EPSILON = 1e-5

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Bottleneck(nn.Module):
    """relu(shortcut + y), y three convolutions of 1x1, 3x3 and 1x1, each normalised.

    Where the shape changes the shortcut is a normalised 1x1 convolution. The last
    normalisation of y starts with scale 0, so that the block starts as its shortcut.

    Attributes:
      channels: of the 3x3 convolution; the block's output has 4 times as many.
      strides: of the 3x3 convolution and of the shortcut.
      dtype: of activations.
      batch_norm_decay: of the running statistics.
    """

    channels: int
    strides: int
    dtype: jax.typing.DTypeLike
    batch_norm_decay: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Computes (batch, height / strides, width / strides, 4 channels)."""
        conv, norm = _layers(self.dtype, self.batch_norm_decay, train)
        y = nn.relu(norm()(conv(self.channels, (1, 1))(x)))
        y = conv(self.channels, (3, 3), strides=self.strides, padding=1)(y)
        y = conv(4 * self.channels, (1, 1))(nn.relu(norm()(y)))
        y = norm(scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = norm()(conv(4 * self.channels, (1, 1), strides=self.strides)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """ResNet-50, v1.5: strides in the 3x3 convolutions.

    25,557,032 parameters for 1000 classes and 4.1 G multiply-adds for an image of
    224x224. Convolutions are initialised by He's rule for their outputs, the last layer
    with deviation .01, and every block as its shortcut. Padding is the same on both
    sides, as in the networks that others publish.

    Attributes:
      num_classes: number of logits.
      dtype: of activations.
      batch_norm_decay: of the running statistics.

    References:
      He et al., Deep Residual Learning, arXiv 1512.03385, table 1.
      Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677, section 5.1.
    """

    num_classes: int
    dtype: jax.typing.DTypeLike = jnp.float32
    batch_norm_decay: float = BATCH_NORM_DECAY

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits (batch, num_classes) of normalised images (batch, ...)."""
        conv, norm = _layers(self.dtype, self.batch_norm_decay, train)
        x = nn.relu(norm()(conv(64, (7, 7), strides=2, padding=3)(images)))
        padding: Any = ((1, 1), (1, 1))  # Flax's annotation knows names only
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        for stage, num_blocks in enumerate(BLOCKS):
            for block in range(num_blocks):
                x = Bottleneck(
                    channels=64 * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    dtype=self.dtype,
                    batch_norm_decay=self.batch_norm_decay,
                )(x, train=train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=init)(x)


def _layers(dtype: jax.typing.DTypeLike, batch_norm_decay: float, train: bool):
    """The two kinds of layers that all parts share."""
    conv = functools.partial(
        nn.Conv, use_bias=False, padding=0, dtype=dtype, kernel_init=_kernel_init
    )
    norm = functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=batch_norm_decay,
        epsilon=BATCH_NORM_EPSILON,
        dtype=dtype,
    )
    return conv, norm
