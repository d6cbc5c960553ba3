"""One step of training: what it starts from, what it minimises and how it is shared."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks import inputs, metrics, models, optimizers
from benchmarks.config import Config
from optax_nlcg import tree, value_grad_and_hessian_diagonal

Tree = Any
Scalar = Any  # of NumPy, or traced

# What a step reports besides its objective; the cross-entropy is without the penalty.
MEASURED = "cross_entropy", "accuracy"


class State(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: steps done, int32 scalar.
      params: float32 tree.
      batch_stats: running statistics of batch normalisation, float32 tree; empty for
        a network without.
      opt_state: state of the optimizer.
      average: averaged parameters, like `params`.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState
    average: Tree


class Hyperparameters(NamedTuple):
    """What differs between steps, or between runs that share a compiled program.

    Attributes:
      learning_rate: of this step, float32 scalar.
      l2: as in `Config`, float32 scalar, and so the following.
      weight_decay: as in `Config`.
      label_smoothing: as in `Config`.
      optimizer_setting: as in `Config`; None: the optimizer's default.
      seed: as in `Config`, int32 scalar.
    """

    learning_rate: Scalar
    l2: Scalar
    weight_decay: Scalar
    label_smoothing: Scalar
    optimizer_setting: Scalar | None
    seed: Scalar


def hyperparameters(config: Config, learning_rate: Scalar) -> Hyperparameters:
    """Those of one step of a run."""
    setting = config.optimizer_setting
    return Hyperparameters(
        learning_rate,
        np.float32(config.l2),
        np.float32(config.weight_decay),
        np.float32(config.label_smoothing),
        None if setting is None else np.float32(setting),
        np.int32(config.seed),
    )


def optimizer(
    config: Config, hyper: Hyperparameters
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run, for one step."""
    return optimizers.build(
        config.optimizer,
        hyper.learning_rate,
        setting=hyper.optimizer_setting,
        weight_decay=hyper.weight_decay,
    )


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
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        # A copy: the step donates its state, and a buffer can be donated only once.
        average=jax.tree.map(jnp.copy, params),
    )


def objective(
    params: Tree,
    batch_stats: Tree,
    model: nn.Module,
    config: Config,
    hyper: Hyperparameters,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, tuple[dict[str, jax.Array], Tree]]]:
    """Mean cross-entropy plus L2 penalty, of one microbatch.

    The penalty is part of the objective so that a line search sees it.

    Returns:
      The objective; logits; `MEASURED` by name, and the new running statistics.
    """
    logits, changed = model.apply(
        {"params": params, "batch_stats": batch_stats},
        inputs.standardize(config, images, model.dtype),
        train=True,
        mutable=["batch_stats"],
    )
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, hyper.label_smoothing)
    cross_entropy = jnp.mean(optax.softmax_cross_entropy(logits, targets))
    loss = cross_entropy + 0.5 * hyper.l2 * models.squared_norm(params)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    measured = {"cross_entropy": cross_entropy, "accuracy": accuracy}
    return loss, (logits, (measured, changed.get("batch_stats", {})))


def make_step(
    config: Config,
    model: nn.Module,
    make_optimizer: Callable[
        [Config, Hyperparameters], optax.GradientTransformationExtraArgs
    ],
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
      step(state, resident, batch, hyper) -> (state, metrics), with a source's
      `resident` arrays on every device, its `batch` in the shape (num_microbatches,
      microbatch, ...), sharded over devices, and the `Hyperparameters` of the step.
    """

    def local_gradient(params, batch_stats, resident, microbatches, hyper):
        diagonal = None if estimator is None else params
        measured = dict.fromkeys(MEASURED, jnp.zeros(()))
        zeros = jnp.zeros(()), (measured, batch_stats), params, diagonal
        zeros = jax.tree.map(jnp.zeros_like, zeros)
        # Varying parameters have a gradient of their own on each device. That of
        # replicated ones would be summed over devices at once, in every microbatch.
        params, batch_stats, zeros = jax.lax.pcast(
            (params, batch_stats, zeros), "data", to="varying"
        )

        def add_microbatch(total, microbatch):
            microbatch, key = microbatch
            batch = inputs.take(config, resident, microbatch)
            args = params, batch_stats, model, config, hyper, *batch
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

    def local_loss(params, batch_stats, resident, microbatches, hyper):
        params, batch_stats, zero = jax.lax.pcast(
            (params, batch_stats, jnp.zeros(())), "data", to="varying"
        )

        # Its gradient keeps the inputs of one microbatch, not the activations of all.
        @jax.checkpoint
        def add_microbatch(total, microbatch):
            batch = inputs.take(config, resident, microbatch)
            loss, _ = objective(params, batch_stats, model, config, hyper, *batch)
            return total + loss, None

        return mean_over_microbatches(add_microbatch, zero, microbatches)

    specs = P(), P(), P(), P("data"), P()
    gradient = jax.shard_map(local_gradient, mesh=mesh, in_specs=specs, out_specs=P())
    loss_fn = jax.shard_map(local_loss, mesh=mesh, in_specs=specs, out_specs=P())

    def step(state, resident, batch, hyper):
        keys = inputs.step_keys(config, hyper.seed, state.step)
        microbatches = inputs.draw(config, batch, keys.crops)
        loss, (measured, batch_stats), grads, diagonal = gradient(
            state.params,
            state.batch_stats,
            resident,
            (microbatches, keys.probes),
            hyper,
        )
        updates, opt_state = make_optimizer(config, hyper).update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            grad=grads,
            value_fn=lambda params: loss_fn(
                params, state.batch_stats, resident, microbatches, hyper
            ),
            hessian_diagonal=diagonal,
        )
        params = optax.apply_updates(state.params, updates)
        # A mini-batch that the optimizer leaves out leaves no statistics either.
        kept = tree.select(jnp.isfinite(loss), batch_stats, state.batch_stats)
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        evaluated = optimizers.evaluated(config.optimizer, opt_state, params)
        average = optax.incremental_update(evaluated, state.average, 1 - decay)
        new = State(state.step + 1, params, kept, opt_state, average)
        scalars = metrics.optimizer_scalars(opt_state)
        return new, {"loss": loss, **measured, **scalars}

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
