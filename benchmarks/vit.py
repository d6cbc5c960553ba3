"""A small vision transformer, without batch normalisation.

Parameters and logits are float32; `dtype` is that of activations.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

PATCH, WIDTH, DEPTH, HEADS, HIDDEN = 4, 64, 4, 4, 128


class Block(nn.Module):
    """x + attention(norm(x)), and the same with two layers for each token.

    Attributes:
      dtype: of activations.
    """

    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes (batch, tokens, width) of the same."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        y = norm()(x)
        # Three layers, and heads split after them: each kernel is one matrix.
        heads = *x.shape[:2], HEADS, WIDTH // HEADS
        query, key, value = (
            dense(WIDTH, use_bias=False, name=name)(y).reshape(heads)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        x = x + dense(WIDTH)(mixed.reshape(x.shape))
        return x + dense(WIDTH)(nn.gelu(dense(HIDDEN)(norm()(x))))


class ViT(nn.Module):
    """Transformer over patches of 4x4 pixels, for images of up to 32x32.

    Pre-normalised, with learned positions and a mean over tokens before the last layer.

    References:
      Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929.
    """

    num_classes: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits (batch, num_classes) of standardised images (batch, ...)."""
        del train  # nothing differs
        batch, height, width, channels = images.shape
        if height % PATCH or width % PATCH:
            raise ValueError(
                f"vit needs images of whole patches of {PATCH}x{PATCH} pixels, got "
                f"{height}x{width}: choose another model."
            )
        rows, columns = height // PATCH, width // PATCH
        x = images.reshape(batch, rows, PATCH, columns, PATCH, channels)
        x = x.swapaxes(2, 3).reshape(batch, rows * columns, PATCH * PATCH * channels)
        x = nn.Dense(WIDTH, dtype=self.dtype)(x)
        positions = nn.initializers.normal(0.02)
        x += self.param("positions", positions, x.shape[1:]).astype(self.dtype)
        for _ in range(DEPTH):
            x = Block(self.dtype)(x)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        return nn.Dense(self.num_classes)(x)
