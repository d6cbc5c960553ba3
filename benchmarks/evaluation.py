"""Loss and accuracy of averaged weights on images that were not trained on."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks import inputs
from benchmarks.config import Config
from benchmarks.training_step import State, mean_over_microbatches

Tree = Any


def recompute_statistics(
    config: Config,
    model: nn.Module,
    params: Tree,
    batch_stats: Tree,
    images: jax.Array,
) -> Tree:
    """Computes the batch statistics that `params` have on these images.

    Averaged weights never saw a mini-batch, and the running statistics are averages
    over a hundred steps. Where weights still move fast, as they do at large batches and
    learning rates, those are far off.
    """
    _, changed = model.clone(batch_norm_decay=0.0).apply(
        {"params": params, "batch_stats": batch_stats},
        inputs.standardize(config, images, model.dtype),
        train=True,
        mutable=["batch_stats"],
    )
    return changed["batch_stats"]


def make_statistics(
    config: Config, model: nn.Module, mesh: Mesh
) -> Callable[[State, Tree, Tree, jax.typing.ArrayLike], Tree]:
    """Makes the function that computes a state's statistics on one more mini-batch.

    It takes what a step takes, and the run's seed. Each microbatch has its own
    statistics, as in training; their mean is returned.
    """

    def local(state, resident, microbatches):
        params, batch_stats = jax.lax.pcast(
            (state.average, state.batch_stats), "data", to="varying"
        )

        def add_microbatch(total, microbatch):
            images, _ = inputs.take(config, resident, microbatch)
            own = recompute_statistics(config, model, params, batch_stats, images)
            return jax.tree.map(jnp.add, total, own), None

        zeros = jax.tree.map(jnp.zeros_like, batch_stats)
        return mean_over_microbatches(add_microbatch, zeros, microbatches)

    shared = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P()
    )

    def statistics(state, resident, batch, seed):
        keys = inputs.step_keys(config, seed, state.step)
        return shared(state, resident, inputs.draw(config, batch, keys.crops))

    return statistics


def evaluate_batch(
    config: Config,
    model: nn.Module,
    params: Tree,
    batch_stats: Tree,
    images: jax.Array,
    labels: jax.Array,
) -> dict[str, jax.Array]:
    """Sums cross-entropy, right answers and images; label -1 is padding."""
    logits: Any = model.apply(
        {"params": params, "batch_stats": batch_stats},
        inputs.standardize(config, images, model.dtype),
        train=False,
    )
    valid = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(valid, labels, 0)
    )
    right = valid & (jnp.argmax(logits, -1) == labels)
    return {
        "loss": jnp.sum(losses, where=valid),
        "accuracy": jnp.sum(right),
        "images": jnp.sum(valid),
    }


def evaluate(
    sums: Callable[..., dict[str, jax.Array]],
    params: Tree,
    batch_stats: Tree,
    batches: Iterable[Tree],
) -> dict[str, float]:
    """Computes mean cross-entropy and accuracy over batches of images and labels.

    Args:
      sums: `evaluate_batch`, compiled, without its first two arguments.
      params: averaged parameters.
      batch_stats: statistics that belong to them.
      batches: pairs (images, labels) on the devices.
    """
    parts = [sums(params, batch_stats, *batch) for batch in batches]
    total = jax.tree.map(lambda *part: float(np.sum(part)), *jax.device_get(parts))
    size = total.pop("images")
    return {name: value / size for name, value in total.items()}
