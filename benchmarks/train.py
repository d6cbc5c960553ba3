"""Trains a network: one file, read from top to bottom.

    python -m benchmarks.train --config cifar100_resnet32 --optimizer nlcg

`train(config)` does the same from Python and returns the result as a row.
"""

import dataclasses
import datetime
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import data, metrics, models, optimizers, schedules
from benchmarks.config import Config, named, names
from optax_nlcg import value_grad_and_hessian_diagonal

Tree = Any

EVAL_BATCH = 1000


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


################################################################################
#  Initial state
################################################################################


def init_state(
    model: models.ResNet | models.MLP,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    key: jax.Array,
) -> State:
    """Draws the initial weights."""
    images = jnp.zeros((1, *image_shape), model.dtype)
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


################################################################################
#  One step
################################################################################


def objective(
    params: Tree,
    batch_stats: Tree,
    model: models.ResNet | models.MLP,
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
        data.standardize(images, model.dtype),
        train=True,
        mutable=["batch_stats"],
    )
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, config.label_smoothing)
    loss = jnp.mean(optax.softmax_cross_entropy(logits, targets))
    loss += 0.5 * config.l2 * models.squared_norm(params)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    return loss, (logits, (accuracy, changed["batch_stats"]))


def step_keys(config: Config, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys of one mini-batch: of its crops, and of each microbatch's probe."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    key_crops, key_probes = jax.random.split(key)
    return key_crops, jax.random.split(key_probes, config.num_microbatches)


def draw_crops(config: Config, step: jax.Array | int) -> data.Crops | None:
    """Draws the crops of one mini-batch, in the shape (microbatches, microbatch).

    For the mini-batch as a whole, so that no image's crop depends on how the mini-batch
    is shared out.
    """
    if not config.augment:
        return None
    crops = data.draw_crops(step_keys(config, step)[0], config.batch_size)
    shape = config.num_microbatches, config.batch_size // config.num_microbatches
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), crops)


def take_batch(
    images: jax.Array, indices: jax.Array, crops: data.Crops | None
) -> jax.Array:
    """Takes images out of the data set, as training sees them."""
    return images[indices] if crops is None else data.take_crops(images, indices, crops)


def make_step(
    config: Config,
    model: models.ResNet | models.MLP,
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
      step(state, images, labels, indices) -> (state, metrics), with the whole data set
      and `indices` int32 of shape (num_microbatches, microbatch), sharded over devices.
    """
    per_device = config.microbatches_per_device(mesh.size)

    def local_gradient(params, batch_stats, images, labels, indices, crops, keys):
        diagonal = None if estimator is None else params
        zeros = jnp.zeros(()), (jnp.zeros(()), batch_stats), params, diagonal
        zeros = jax.tree.map(jnp.zeros_like, zeros)
        # Varying parameters have a gradient of their own on each device. That of
        # replicated ones would be summed over devices at once, in every microbatch.
        params, batch_stats, zeros = jax.lax.pcast(
            (params, batch_stats, zeros), "data", to="varying"
        )

        def add_microbatch(total, microbatch):
            indices, crops, key = microbatch
            batch = take_batch(images, indices, crops)
            args = params, batch_stats, model, config, batch, labels[indices]
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

        return mean_over_microbatches(add_microbatch, zeros, (indices, crops, keys))

    def local_loss(params, batch_stats, images, labels, indices, crops):
        params, batch_stats, zero = jax.lax.pcast(
            (params, batch_stats, jnp.zeros(())), "data", to="varying"
        )

        # Its gradient keeps the inputs of one microbatch, not the activations of all.
        @jax.checkpoint
        def add_microbatch(total, microbatch):
            indices, crops = microbatch
            batch = take_batch(images, indices, crops)
            loss, _ = objective(
                params, batch_stats, model, config, batch, labels[indices]
            )
            return total + loss, None

        return mean_over_microbatches(add_microbatch, zero, (indices, crops))

    def mean_over_microbatches(add_microbatch, total, microbatches):
        if per_device == 1 or jax.default_backend() == "cpu":
            # XLA's CPU backend leaves backward convolutions that it met inside a loop
            # in a form without a fast kernel, even if the loop is gone in the end.
            for i in range(per_device):
                microbatch = jax.tree.map(lambda x, i=i: x[i], microbatches)
                total, _ = add_microbatch(total, microbatch)
        else:
            total, _ = jax.lax.scan(add_microbatch, total, microbatches)
        return jax.lax.pmean(jax.tree.map(lambda x: x / per_device, total), "data")

    specs = P(), P(), P(), P(), P("data"), P("data")
    gradient = jax.shard_map(
        local_gradient, mesh=mesh, in_specs=(*specs, P("data")), out_specs=P()
    )
    loss_fn = jax.shard_map(local_loss, mesh=mesh, in_specs=specs, out_specs=P())

    def step(state, images, labels, indices):
        crops = draw_crops(config, state.step)
        _, keys = step_keys(config, state.step)
        batch = state.batch_stats, images, labels, indices, crops
        loss, (accuracy, batch_stats), grads, diagonal = gradient(
            state.params, *batch, keys
        )
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            grad=grads,
            value_fn=lambda params: loss_fn(params, *batch),
            hessian_diagonal=diagonal,
        )
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, state.average, 1 - decay)
        new = State(state.step + 1, params, batch_stats, opt_state, average)
        scalars = metrics.optimizer_scalars(opt_state)
        return new, {"loss": loss, "accuracy": accuracy, **scalars}

    return step


################################################################################
#  Evaluation
################################################################################


def recompute_statistics(
    model: models.ResNet | models.MLP,
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
        data.standardize(images, model.dtype),
        train=True,
        mutable=["batch_stats"],
    )
    return changed["batch_stats"]


def evaluate_batch(
    model: models.ResNet | models.MLP,
    params: Tree,
    batch_stats: Tree,
    images: jax.Array,
    labels: jax.Array,
) -> dict[str, jax.Array]:
    """Sums cross-entropy and right answers over a batch; label -1 is padding."""
    logits: Any = model.apply(
        {"params": params, "batch_stats": batch_stats},
        data.standardize(images, model.dtype),
        train=False,
    )
    valid = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(valid, labels, 0)
    )
    right = valid & (jnp.argmax(logits, -1) == labels)
    return {"loss": jnp.sum(losses, where=valid), "accuracy": jnp.sum(right)}


def evaluate(
    model: models.ResNet | models.MLP,
    params: Tree,
    batch_stats: Tree,
    split: data.Split,
    sharding: jax.sharding.Sharding,
) -> dict[str, float]:
    """Computes mean cross-entropy and accuracy over a data set."""
    size = len(split.labels)
    batch = min(size, EVAL_BATCH)
    padding = -size % batch
    images = np.pad(split.images, [(0, padding), (0, 0), (0, 0), (0, 0)])
    labels = np.pad(split.labels, (0, padding), constant_values=-1)
    sums = jax.jit(partial(evaluate_batch, model))
    batches = [(i, i + batch) for i in range(0, size, batch)]
    parts = [
        sums(params, batch_stats, *jax.device_put((images[i:j], labels[i:j]), sharding))
        for i, j in batches
    ]
    total = jax.tree.map(lambda *part: float(sum(part)), *jax.device_get(parts))
    return {name: value / size for name, value in total.items()}


################################################################################
#  A run
################################################################################


def num_steps(config: Config, num_train: int) -> int:
    """Mini-batches in `num_epochs` passes over `num_train` images."""
    steps = int(config.num_epochs * num_train // config.batch_size)
    if steps < 1:
        raise ValueError(
            f"{config.num_epochs} epochs of {num_train} images are less than one "
            f"mini-batch of {config.batch_size}: raise num_epochs"
        )
    return steps


def train(config: Config) -> dict[str, Any]:
    """Trains as `config` says, and appends the result to `<out>/results.jsonl`.

    Returns:
      The result row: status ("finished" or "diverged"), final metrics, timings, config
      and environment; "curve" names the file of the metrics of each step.
    """
    # Whatever can be wrong with the config is said before anything takes time.
    metrics.git_commit()  # as it is now, not when the run ends
    devices = jax.devices()
    if config.num_devices is not None:
        if not 1 <= config.num_devices <= len(devices):
            raise ValueError(
                f"num_devices must be in [1, {len(devices)}] on this machine, "
                f"got {config.num_devices}"
            )
        devices = devices[: config.num_devices]
    config.microbatches_per_device(len(devices))
    dataset = data.info(config.dataset)
    dtype = models.platform_dtype(config.dtype)
    model = models.build(config.model, dataset.num_classes, dtype)
    data.check_num_validation(config.num_validation, dataset.num_train)
    total_steps = num_steps(config, dataset.num_train - config.num_validation)
    schedule = schedules.build(config.schedule, config.peak_learning_rate, total_steps)
    rates = jax.vmap(lambda step: jnp.asarray(schedule(step)))(jnp.arange(total_steps))
    rates = jax.device_get(rates)
    tx = optimizers.build(config.optimizer, schedule)

    # ---- Data: on the device once and for all ---------------------------------
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )
    everywhere, shared_out = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    if dataset.url:
        data.check_files(config.dataset, config.data_dir)
    train_set, validation_set = data.hold_out(
        data.load(config.dataset, "train", config.data_dir), config.num_validation
    )
    num_train = len(train_set.labels)
    images, labels = jax.device_put(tuple(train_set), everywhere)

    def next_indices(step: int) -> jax.Array:
        indices = data.batch_indices(config.seed, step, config.batch_size, num_train)
        return jax.device_put(indices.reshape(config.num_microbatches, -1), shared_out)

    # ---- Compilation ------------------------------------------------------------
    start = time.perf_counter()
    init = partial(init_state, model, tx, dataset.image_shape)
    state = jax.jit(init, out_shardings=everywhere)(jax.random.key(config.seed))
    inputs = state, images, labels, next_indices(0)

    # What a step costs in gradients is counted against one that takes a gradient and
    # nothing else.
    nothing = optax.with_extra_args_support(optax.identity())
    gradient_inputs = state._replace(opt_state=nothing.init(state.params)), *inputs[1:]
    gradient_step = make_step(config, model, nothing, mesh)
    gradient_flops = metrics.flops(jax.jit(gradient_step).lower(*gradient_inputs))

    def compile_step(estimator: str | None) -> tuple[jax.stages.Compiled, float]:
        step = make_step(config, model, tx, mesh, estimator)
        lowered = jax.jit(step, donate_argnums=0).lower(*inputs)
        return lowered.compile(), metrics.flops(lowered) / gradient_flops

    estimator = optimizers.ESTIMATORS.get(config.optimizer)
    plain = refresh = compile_step(None)
    if estimator is not None:
        refresh = compile_step(estimator)
    compile_seconds = time.perf_counter() - start

    # ---- Training ---------------------------------------------------------------
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    run = f"{config.dataset}-{config.model}-{config.optimizer}-b{config.batch_size}"
    run += f"-lr{config.peak_learning_rate:g}-seed{config.seed}-{stamp}"
    curve = metrics.CurveWriter(config.out / f"{run}.jsonl", config.tensorboard)
    progress = metrics.Progress(run, total_steps, config.progress)
    status, pending, last = "finished", [], {}
    spent, seconds = 0.0, 0.0
    start = time.perf_counter()
    for step in range(total_steps):
        step_fn, cost = plain if step % config.refresh_every else refresh
        state, scalars = step_fn(state, images, labels, next_indices(step))
        spent += cost
        pending.append({**scalars, "gradient_equivalents": spent})
        # The device is waited for only here; in between, steps queue up behind it.
        if len(pending) < config.log_every and step + 1 < total_steps:
            continue
        pending = jax.device_get(pending)
        before, seconds = seconds, time.perf_counter() - start
        for offset, scalars in enumerate(pending):
            at = step + 1 - len(pending) + offset
            last = {name: float(value) for name, value in scalars.items()}
            last["learning_rate"] = float(rates[at])
            # Time is read once for all of them: in between it is shared out evenly.
            last["seconds"] = before + (offset + 1) / len(pending) * (seconds - before)
            curve.write(at, last)
        curve.flush()
        pending = []
        images_per_second = (step + 1) * config.batch_size / seconds
        progress.show(step + 1, {**last, "images/s": images_per_second})
        if not math.isfinite(last["loss"]):
            status = "diverged"
            break
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    steps_done = int(state.step)
    curve.close()
    progress.close()

    # ---- Evaluation -------------------------------------------------------------
    final = {"train_loss": last["loss"], "train_accuracy": last["accuracy"]}
    if status == "finished":
        if config.num_validation:
            split, name = validation_set, "validation"
        else:
            split, name = data.load(config.dataset, "test", config.data_dir), "test"
        statistics = state.batch_stats
        if config.eval_statistics == "recomputed":
            # As training would go on: the next mini-batch, each microbatch alone.
            recompute = jax.jit(
                lambda state, images, indices, crops: recompute_statistics(
                    model,
                    state.average,
                    state.batch_stats,
                    take_batch(images, indices, crops),
                )
            )
            microbatches = next_indices(total_steps), draw_crops(config, total_steps)
            parts = [
                recompute(
                    state, images, *jax.tree.map(lambda x, i=i: x[i], microbatches)
                )
                for i in range(config.num_microbatches)
            ]
            statistics = jax.tree.map(lambda *x: sum(x) / len(x), *parts)
        result = evaluate(model, state.average, statistics, split, everywhere)
        final |= {f"{name}_{k}": v for k, v in result.items()}
        if not math.isfinite(final[f"{name}_loss"]):
            status = "diverged"
    if status == "diverged":
        print(
            f"{run}: diverged, the loss is {last['loss']} at step {steps_done} of "
            f"{total_steps}; a smaller learning rate may help"
        )

    row = {
        "run": run,
        "status": status,
        **{name: metrics.finite(value) for name, value in final.items()},
        "num_steps": steps_done,
        "gradient_equivalents": round(spent, 1),
        "num_parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "seconds": round(seconds, 3),
        "images_per_second": round(steps_done * config.batch_size / seconds, 1),
        "compile_seconds": round(compile_seconds, 3),
        "dtype": dtype.name,
        "learning_rate": config.peak_learning_rate,
        "curve": f"{run}.jsonl",
        **metrics.environment(len(devices)),
        "config": dataclasses.asdict(config),
    }
    metrics.append_row(config.out / "results.jsonl", row)
    return row


################################################################################
#  Command line
################################################################################


def main() -> None:
    """Reads the command line, trains and prints the result."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="digits", choices=names())
    chosen, rest = parser.parse_known_args()
    # Needed for nothing but this, so that `train` runs where it is not installed.
    import tyro

    try:
        config = tyro.cli(
            Config,
            default=named(chosen.config),
            args=rest,
            prog="python -m benchmarks.train",
            description=f"Trains a network. --config: {', '.join(names())}.",
        )
        row = train(config)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    shown = "loss", "accuracy", "seconds", "images_per_second"
    print(f"{row['run']}: {row['status']}")
    for name, value in row.items():
        if name.endswith(shown):
            print(f"  {name:20} {value}")
    print(f"  written to {config.out / 'results.jsonl'}")


if __name__ == "__main__":
    main()
