"""Trains a network, from top to bottom; what it compiles is in `programs.py`.

    python -m benchmarks.train --config cifar100_resnet32 --optimizer nlcg

`train(config)` does the same from Python and returns the result as a row.
"""

import collections
import contextlib
import dataclasses
import datetime
import functools
import math
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import (
    evaluation,
    inputs,
    metrics,
    models,
    optimizers,
    programs,
    schedules,
)
from benchmarks.checkpoint import Checkpoints, StopRequest
from benchmarks.config import Config, named, names
from benchmarks.training_step import hyperparameters

EVAL_BATCH = 1000

# Steps whose inputs may wait on the devices.
MAX_QUEUED = 3

# Steps over which a run's loss is averaged where it is judged.
JUDGED_OVER = 10


def choose_devices(config: Config) -> list[Any]:
    """The devices of a run, those of one process side by side."""
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    if config.num_devices is None:
        return devices
    if jax.process_count() > 1 and config.num_devices != len(devices):
        raise ValueError(
            f"{jax.process_count()} processes use all their {len(devices)} devices: "
            f"leave num_devices out, got {config.num_devices}"
        )
    if not 1 <= config.num_devices <= len(devices):
        raise ValueError(
            f"num_devices must be in [1, {len(devices)}] on this machine, "
            f"got {config.num_devices}"
        )
    return devices[: config.num_devices]


def train(config: Config) -> dict[str, Any]:
    """Trains as `config` says, and appends the result to `<out>/results.jsonl`.

    A run with a `checkpoint_dir` that finds a checkpoint there goes on from it, and
    ends with the same bits as if it had never stopped. Told to stop (SIGTERM, Ctrl-C)
    it saves first.

    Among several processes all call this, with the same config. Each reads its part of
    every mini-batch; the first one writes curves and results.

    Returns:
      The result row: status ("finished", "diverged", "given up", or "interrupted",
      which is in no file), final metrics, timings, config and environment; "curve"
      names the file of the metrics of each step.
    """
    with contextlib.ExitStack() as resources:
        return _train(config, resources)


def _train(config: Config, resources: contextlib.ExitStack) -> dict[str, Any]:
    """`train`, with what has to be closed whatever happens."""
    # Whatever can be wrong with the config is said before anything takes time.
    metrics.git_commit()  # as it is now, not when the run ends
    devices = choose_devices(config)
    config.microbatches_per_device(len(devices))
    dtype = models.platform_dtype(config.dtype)
    optimizers.build(config.optimizer, 0.0, setting=config.optimizer_setting)
    schedules.build(config.schedule, 0.0, 1)
    source = inputs.open_source(config)
    models.build(config.model, source.num_classes, dtype)
    total_steps = config.num_steps(source.num_train)
    schedule = schedules.build(
        config.schedule, config.peak_learning_rate, total_steps, warmup=config.warmup
    )
    rates = jax.vmap(lambda step: jnp.asarray(schedule(step)))(jnp.arange(total_steps))
    rates = np.asarray(rates, np.float32)
    leader = jax.process_index() == 0
    if leader:
        config.out.mkdir(parents=True, exist_ok=True)
    checkpoints = stop_request = None
    if config.checkpoint_dir is not None:
        # Closed last: no signal ends the writing of a checkpoint.
        stop_request = StopRequest()
        resources.callback(stop_request.close)
        checkpoints = Checkpoints(config)
        resources.callback(checkpoints.close)

    # ---- Devices ----------------------------------------------------------------
    mesh = Mesh(np.array(devices), ("data",))
    everywhere, shared_out = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    resident = jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda i: x[i]),
        source.resident,
    )
    local_microbatches = config.num_microbatches // jax.process_count()

    def share_out(part):
        """Makes one sharded array of what every process has of it."""
        return jax.tree.map(
            functools.partial(jax.make_array_from_process_local_data, shared_out), part
        )

    def next_batch(batches):
        return share_out(
            jax.tree.map(
                lambda x: x.reshape(local_microbatches, -1, *x.shape[1:]),
                next(batches),
            )
        )

    # ---- Compilation ------------------------------------------------------------
    start = time.perf_counter()
    compiled = programs.compile_programs(
        programs.structure(config),
        dtype.name,
        mesh,
        source.num_classes,
        source.image_shape,
        tuple(programs.like(x, everywhere) for x in source.resident),
        source.element,
    )
    hyper = hyperparameters(config, rates[0])
    state = compiled.init(hyper)
    compile_seconds = time.perf_counter() - start

    def evaluate(state):
        statistics = state.batch_stats
        if statistics and config.eval_statistics == "recomputed":
            # As training would go on: on the next mini-batch.
            step = int(state.step)
            following = next_batch(source.batches(step, step + 1))
            statistics = compiled.statistics(state, resident, following, hyper.seed)
        eval_batch = -(-EVAL_BATCH // mesh.size) * mesh.size
        batches = map(share_out, source.evaluation_batches(eval_batch))
        return evaluation.evaluate(compiled.sums, state.average, statistics, batches)

    # ---- Where to begin ---------------------------------------------------------
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    run = f"{config.dataset}-{config.model}-{config.optimizer}-b{config.batch_size}"
    run += f"-lr{config.peak_learning_rate:g}-seed{config.seed}-{stamp}"
    if leader:
        run = metrics.unused_name(config.out, run)
    record = {"run": run, "spent": 0.0, "seconds": 0.0, "last": {}, "recent": []}
    record["resumed_at"] = []
    if checkpoints is not None and checkpoints.record is not None:
        state, record = checkpoints.restore(state), record | checkpoints.record
        record["resumed_at"].append(int(state.step))
    first_step = int(state.step)
    run, last, spent = record["run"], record["last"], record["spent"]
    curve = progress = None
    if leader:
        curve = metrics.CurveWriter(
            config.out / f"{run}.jsonl", config.tensorboard, first_step
        )
        resources.callback(curve.close)
        progress = metrics.Progress(run, total_steps, config.progress, first_step)
        resources.callback(progress.close)

    # ---- Training ---------------------------------------------------------------
    status, result, steps_done = "finished", None, first_step
    pending, queued = [], collections.deque()
    recent = collections.deque(record["recent"], maxlen=JUDGED_OVER)
    judged_at = None
    if config.give_up_at is not None:
        windows = math.ceil(config.give_up_at * total_steps / JUDGED_OVER)
        judged_at = max(windows, 1) * JUDGED_OVER
        if judged_at > total_steps / 2:
            # Less is saved than is lost where a run recovers from its beginning.
            judged_at = None
    batches = iter(source.batches(first_step, total_steps))
    seconds = record["seconds"]
    start = time.perf_counter() - seconds
    for step in range(first_step, total_steps):
        refresh = step % config.refresh_every == 0
        step_fn, cost = compiled.refresh_step if refresh else compiled.step
        hyper = hyper._replace(learning_rate=rates[step])
        state, scalars = step_fn(state, resident, next_batch(batches), hyper)
        steps_done = step + 1
        spent += cost
        pending.append({**scalars, "gradient_equivalents": spent})
        queued.append(scalars["loss"])
        if len(queued) > MAX_QUEUED:
            jax.block_until_ready(queued.popleft())
        stopping = stop_request is not None and stop_request.reached(steps_done)
        at_end = steps_done == total_steps
        saving = checkpoints is not None and (
            stopping or at_end or steps_done % config.checkpoint_every == 0
        )
        due = at_end or saving or steps_done == judged_at
        if len(pending) < config.log_every and not due:
            continue
        # The metrics are waited for only here.
        pending = jax.device_get(pending)
        before, seconds = seconds, time.perf_counter() - start
        for offset, scalars in enumerate(pending):
            at = steps_done - len(pending) + offset
            last = {name: float(value) for name, value in scalars.items()}
            last["learning_rate"] = float(rates[at])
            # Time is read once for all of them: in between it is shared out evenly.
            last["seconds"] = before + (offset + 1) / len(pending) * (seconds - before)
            # The penalty may overflow while the rest is finite still.
            whole = math.isfinite(last["loss"])
            recent.append(last["cross_entropy"] if whole else math.nan)
            if curve is not None:
                curve.write(at, last)
            # One bad mini-batch may be skipped, whenever it is looked at.
            number = JUDGED_OVER if at + 1 < total_steps else 1
            judged = list(recent)[-number:]
            if len(judged) == number and not any(map(math.isfinite, judged)):
                status, steps_done = "diverged", at + 1
                spent = last["gradient_equivalents"]
                break
        pending = []
        finite = list(filter(math.isfinite, recent))
        mean = float(np.mean(finite)) if finite else math.nan
        if curve is not None and progress is not None:
            curve.flush()
            rate = (steps_done - first_step) * config.batch_size
            rate /= seconds - record["seconds"]
            progress.show(steps_done, {**last, "images/s": rate})
        if status == "diverged":
            break
        guessing = math.log(source.num_classes)
        if steps_done == judged_at and min(mean, recent[-1]) > guessing:
            status = "given up"
            break
        if saving:
            assert checkpoints is not None
            score = None
            if at_end or not stopping:  # who stops a run does not wait for long
                score = -mean if finite else None
                if config.num_validation:
                    result = evaluate(state)
                    score = result["accuracy"]
            now = {"spent": spent, "seconds": seconds, "last": last}
            now["recent"] = list(recent)
            checkpoints.save(steps_done, state, {**record, **now}, score)
            # Neither evaluation nor writing is training time.
            start = time.perf_counter() - seconds
        if stopping and not at_end:
            status = "interrupted"
            break
    jax.block_until_ready(state)
    resources.close()

    # ---- Result -----------------------------------------------------------------
    final = {"train_loss": last["loss"], "train_accuracy": last["accuracy"]}
    if status == "finished":
        if result is None:
            result = evaluate(state)
        name = source.evaluation_name
        final |= {f"{name}_{k}": v for k, v in result.items()}
        if not math.isfinite(final[f"{name}_loss"]):
            status = "diverged"
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
        "resumed_at": record["resumed_at"],
        "dtype": dtype.name,
        "learning_rate": config.peak_learning_rate,
        "curve": f"{run}.jsonl",
        **metrics.environment(len(devices)),
        "config": dataclasses.asdict(config),
    }
    if leader and status == "diverged":
        print(
            f"{run}: diverged, the loss is {last['loss']} at step {steps_done} of "
            f"{total_steps}; a smaller learning rate may help"
        )
    if leader and status != "interrupted":
        metrics.append_run(config.out / "results.jsonl", row)
    return row


################################################################################
#  Command line
################################################################################


def main() -> None:
    """Reads the command line, trains and prints the result."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="digits", choices=names())
    # How processes find each other is no setting of a run.
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator-address")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    chosen, rest = parser.parse_known_args()
    by_hand = chosen.coordinator_address, chosen.num_processes, chosen.process_id
    if by_hand != (None, None, None) and None in by_hand:
        parser.error(
            "--coordinator-address, --num-processes and --process-id belong together"
        )
    # Needed for nothing but this, so that `train` runs where it is not installed.
    import tyro

    try:
        config = tyro.cli(
            Config,
            default=named(chosen.config),
            args=rest,
            prog="python -m benchmarks.train",
            description=(
                f"Trains a network. --config: {', '.join(names())}. "
                "On several processes: --distributed where JAX finds the others by "
                "itself (TPU pods, SLURM, GKE), or --coordinator-address HOST:PORT "
                "--num-processes N --process-id I."
            ),
        )
        if chosen.distributed or by_hand != (None, None, None):
            jax.distributed.initialize(*by_hand)
        row = train(config)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if jax.process_index() == 0:
        report(row, config)
    if row["status"] == "interrupted":
        raise SystemExit(128 + signal.SIGTERM)


def report(row: dict[str, Any], config: Config) -> None:
    """Prints what came of a run."""
    print(f"{row['run']}: {row['status']}")
    for name, value in row.items():
        if name.endswith(("loss", "accuracy", "seconds", "images_per_second")):
            print(f"  {name:20} {value}")
    if row["status"] == "interrupted":
        print(
            f"  saved in {config.checkpoint_dir}: the same command goes on from there"
        )
    else:
        print(f"  written to {config.out / 'results.jsonl'}")


if __name__ == "__main__":
    main()
