"""One step of training: what it starts from, what it minimises and how it is shared."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks import inputs, metrics, models
from benchmarks.config import Config
from optax_nlcg import value_grad_and_hessian_diagonal

Tree = Any


class State(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: steps done, int32 scalar.
      params: float32 tree.
      batch_stats: running statistics of batch normalisation, float32 tree.
      opt_state: state of the optimizer.
      average: averaged parameters, like `params`.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState
    average: Tree


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    key: jax.Array,
) -> State:
    """Draws the initial weights."""
    images = jnp.zeros((1, *image_shape))
    variables = model.init(key, images, train=True)
    params = variables["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(params),
        # A copy: the step donates its state, and a buffer can be donated only once.
        average=jax.tree.map(jnp.copy, params),
    )


def objective(
    params: Tree,
    batch_stats: Tree,
    model: nn.Module,
    config: Config,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, tuple[jax.Array, Tree]]]:
    """Mean cross-entropy plus L2 penalty, of one microbatch.

    The penalty is part of the objective so that a line search sees it.

    Returns:
      The objective; logits; accuracy and the new running statistics.
    """
    logits, changed = model.apply(
        {"params": params, "batch_stats": batch_stats},
        inputs.standardize(config, images, model.dtype),
        train=True,
        mutable=["batch_stats"],
    )
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, config.label_smoothing)
    loss = jnp.mean(optax.softmax_cross_entropy(logits, targets))
    loss += 0.5 * config.l2 * models.squared_norm(params)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    return loss, (logits, (accuracy, changed["batch_stats"]))


def make_step(
    config: Config,
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    estimator: str | None = None,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """Makes the function that trains on one mini-batch.

    The mini-batch is `num_microbatches` microbatches; each has its own batch
    statistics, and their gradients, losses and running statistics are averaged. Every
    device goes through its share of them in a `lax.scan`, then there is one all-reduce.

    This is a `shard_map`, not `jit` with sharded inputs, because batch statistics
    belong to a microbatch: written per device they are local by construction, and the
    gradient crosses the network once a step instead of once a microbatch.

    With an `estimator` it is the dearer step that also estimates the diagonal of the
    Hessian, by a probe of its own for every microbatch, and hands it to the optimizer.
    It is a program of its own because a branch in the common one would cost more: XLA
    runs convolutions under a condition slowly on some platforms.

    Returns:
      step(state, resident, batch) -> (state, metrics), with a source's `resident`
      arrays on every device, and its `batch` in the shape (num_microbatches,
      microbatch, ...), sharded over devices.
    """

    def local_gradient(params, batch_stats, resident, microbatches):
        diagonal = None if estimator is None else params
        zeros = jnp.zeros(()), (jnp.zeros(()), batch_stats), params, diagonal
        zeros = jax.tree.map(jnp.zeros_like, zeros)
        # Varying parameters have a gradient of their own on each device. That of
        # replicated ones would be summed over devices at once, in every microbatch.
        params, batch_stats, zeros = jax.lax.pcast(
            (params, batch_stats, zeros), "data", to="varying"
        )

        def add_microbatch(total, microbatch):
            microbatch, key = microbatch
            batch = inputs.take(config, resident, microbatch)
            args = params, batch_stats, model, config, *batch
            if estimator is None:
                evaluate = jax.value_and_grad(objective, has_aux=True)
                (loss, aux), grads = evaluate(*args)
                diagonal = None
            else:
                evaluate = value_grad_and_hessian_diagonal(
                    objective, method=estimator, has_aux=True
                )
                (loss, aux), grads, diagonal = evaluate(*args, key=key)
            if estimator != "gauss_newton_bartlett":  # which keeps the logits
                _, aux = aux
            return jax.tree.map(jnp.add, total, (loss, aux, grads, diagonal)), None

        return mean_over_microbatches(add_microbatch, zeros, microbatches)

    def local_loss(params, batch_stats, resident, microbatches):
        params, batch_stats, zero = jax.lax.pcast(
            (params, batch_stats, jnp.zeros(())), "data", to="varying"
        )

        # Its gradient keeps the inputs of one microbatch, not the activations of all.
        @jax.checkpoint
        def add_microbatch(total, microbatch):
            batch = inputs.take(config, resident, microbatch)
            loss, _ = objective(params, batch_stats, model, config, *batch)
            return total + loss, None

        return mean_over_microbatches(add_microbatch, zero, microbatches)

    specs = P(), P(), P(), P("data")
    gradient = jax.shard_map(local_gradient, mesh=mesh, in_specs=specs, out_specs=P())
    loss_fn = jax.shard_map(local_loss, mesh=mesh, in_specs=specs, out_specs=P())

    def step(state, resident, batch):
        microbatches = inputs.draw(config, batch, state.step)
        _, keys = inputs.step_keys(config, state.step)
        loss, (accuracy, batch_stats), grads, diagonal = gradient(
            state.params, state.batch_stats, resident, (microbatches, keys)
        )
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            grad=grads,
            value_fn=lambda params: loss_fn(
                params, state.batch_stats, resident, microbatches
            ),
            hessian_diagonal=diagonal,
        )
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, state.average, 1 - decay)
        new = State(state.step + 1, params, batch_stats, opt_state, average)
        scalars = metrics.optimizer_scalars(opt_state)
        return new, {"loss": loss, "accuracy": accuracy, **scalars}

    return step


def mean_over_microbatches(
    add_microbatch: Callable[[Tree, Tree], tuple[Tree, None]],
    total: Tree,
    microbatches: Tree,
) -> Tree:
    """Averages over a device's microbatches, one after the other, and over devices."""
    number = len(jax.tree.leaves(microbatches)[0])
    if number == 1 or jax.default_backend() == "cpu":
        # XLA's CPU backend leaves backward convolutions that it met inside a loop in a
        # form without a fast kernel, even if the loop is gone in the end.
        for i in range(number):
            microbatch = jax.tree.map(lambda x, i=i: x[i], microbatches)
            total, _ = add_microbatch(total, microbatch)
    else:
        total, _ = jax.lax.scan(add_microbatch, total, microbatches)
    return jax.lax.pmean(jax.tree.map(lambda x: x / number, total), "data")
