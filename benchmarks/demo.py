"""NLCG against tuned baselines at growing batch sizes, on handwritten digits.

    make demo        (or: python -m benchmarks.demo)

Every optimizer trains the same small network for the same number of epochs. Its
learning rate is the best of eight on a validation set; the test set is then read once,
after training anew from other seeds. Takes at most 4 minutes on two CPU cores.

One compiled program per optimizer and batch size trains all learning rates, then all
seeds, side by side: `vmap` over them and `lax.scan` over the steps of
`benchmarks.train`.
"""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import AxisType

from benchmarks import (
    data,
    evaluation,
    metrics,
    models,
    report,
    schedules,
)
from benchmarks.config import Config
from benchmarks.training_step import (
    hyperparameters,
    init_state,
    make_step,
    optimizer,
)

NUM_VALIDATION = 300
NUM_EPOCHS = 30
BATCH_SIZES = (64, 256, data.DATASETS["digits"].num_train - NUM_VALIDATION)

# Eight learning rates half a decade apart for each optimizer. Where one does nothing
# depends on how the optimizer scales the gradient, so each kind has its own middle.
GRADIENT_STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
ADAPTIVE_STEPS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
ORTHOGONAL_STEPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LAYERWISE_STEPS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
LEARNING_RATES = {
    "nlcg_muon": ORTHOGONAL_STEPS,
    "nlcg_adam": ADAPTIVE_STEPS,
    "nlcg": GRADIENT_STEPS,
    "ml_ncg": GRADIENT_STEPS,
    "sgd": GRADIENT_STEPS,
    "momentum": GRADIENT_STEPS,
    "nesterov": GRADIENT_STEPS,
    "rmsprop": GRADIENT_STEPS,
    "adamw": ADAPTIVE_STEPS,
    "muon": ORTHOGONAL_STEPS,
    "lamb": ADAPTIVE_STEPS,
    "lars": LAYERWISE_STEPS,
}
# As many as there are learning rates: both fill the same compiled program.
SEEDS = tuple(range(1, 9))

# A run takes less than a second and compiling it several: LLVM need not try hard.
QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def make_runs(config: Config, train_set: data.Split) -> Callable[..., Any]:
    """Makes a function that trains `config` with several learning rates or seeds.

    Returns:
      runs(rates, seeds, split) with sequences of equal length; its result is a dict of
      arrays, one entry a run: loss and accuracy on `split`, train_loss of each step.
    """
    dataset = data.info(config.dataset)
    dtype = models.platform_dtype(config.dtype)
    model = models.build(config.model, dataset.num_classes, dtype)
    num_train = len(train_set.labels)
    num_steps = config.num_steps(num_train)
    mesh = jax.make_mesh(
        (1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
    )
    images, labels = jax.device_put(tuple(train_set))
    train_step = make_step(config, model, optimizer, mesh)

    @partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    @jax.vmap
    def run(rate, seed, indices):
        schedule = schedules.build(config.schedule, rate, num_steps)
        rates = jax.vmap(schedule)(jnp.arange(num_steps))
        tx = optimizer(config, hyperparameters(config, rate))
        state = init_state(model, tx, dataset.image_shape, jax.random.key(seed))

        def step(state, inputs):
            batch, rate = inputs
            hyper = hyperparameters(config, rate)
            return train_step(state, (images, labels), batch, hyper)

        state, scalars = jax.lax.scan(step, state, (indices, rates))
        statistics = evaluation.recompute_statistics(
            config, model, state.average, state.batch_stats, images
        )
        return state.average, statistics, scalars["loss"]

    @partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    def evaluate(params, batch_stats, images, labels):
        lanes = jax.vmap(
            evaluation.evaluate_batch, in_axes=(None, None, 0, 0, None, None)
        )
        sums = lanes(config, model, params, batch_stats, images, labels)
        return {k: sums[k] / len(labels) for k in ("loss", "accuracy")}

    def runs(rates, seeds, split):
        indices = [
            [
                data.batch_indices(seed, step, config.batch_size, num_train)
                for step in range(num_steps)
            ]
            for seed in seeds
        ]
        indices = np.array(indices)[:, :, None]
        average, statistics, losses = run(jnp.array(rates), jnp.array(seeds), indices)
        result = evaluate(average, statistics, *split)
        return jax.device_get({**result, "train_loss": losses})

    return runs


def best(result: dict[str, np.ndarray]) -> int:
    """Says which run has the highest accuracy; of equals, the smallest loss."""
    loss = np.where(np.isfinite(result["loss"]), result["loss"], np.inf)
    accuracy = np.where(np.isfinite(result["loss"]), result["accuracy"], -1.0)
    return int(np.lexsort((loss, -accuracy))[0])


def compare(config: Config, out: pathlib.Path) -> list[dict[str, Any]]:
    """Tunes and tests one optimizer at one batch size; one row for each test run."""
    start = time.perf_counter()
    train_set, validation_set = data.hold_out(
        data.load(config.dataset, "train"), config.num_validation
    )
    rates = LEARNING_RATES[config.optimizer]
    runs = make_runs(config, train_set)
    trials = runs(rates, [config.seed] * len(rates), validation_set)
    chosen = best(trials)
    # Only now, and for the chosen learning rate only, is the test set read.
    test_set = data.load(config.dataset, "test")
    tests = runs([rates[chosen]] * len(SEEDS), SEEDS, test_set)
    seconds = time.perf_counter() - start

    rows = []
    environment = metrics.environment(num_devices=1)
    # One curve for all seeds: the mean of their losses.
    name = f"{config.optimizer}-b{config.batch_size}"
    curve = metrics.CurveWriter(out / f"{name}.jsonl")
    for step, loss in enumerate(tests["train_loss"].mean(0)):
        curve.write(step, {"loss": float(loss)})
    curve.close()
    for lane, seed in enumerate(SEEDS):
        finite = np.isfinite(tests["loss"][lane])
        rows.append(
            {
                "run": f"{name}-seed{seed}",
                "status": "finished" if finite else "diverged",
                "test_accuracy": metrics.finite(float(tests["accuracy"][lane])),
                "test_loss": metrics.finite(float(tests["loss"][lane])),
                "train_loss": metrics.finite(float(tests["train_loss"][lane, -1])),
                "num_steps": tests["train_loss"].shape[1],
                "learning_rate": rates[chosen],
                "trials": {
                    "learning_rate": rates,
                    "validation_accuracy": [
                        metrics.finite(float(x)) for x in trials["accuracy"]
                    ],
                    "validation_loss": [
                        metrics.finite(float(x)) for x in trials["loss"]
                    ],
                },
                "seconds_of_all_trials_and_tests": round(seconds, 3),
                "curve": f"{name}.jsonl",
                **environment,
                "config": dataclasses.asdict(
                    dataclasses.replace(
                        config, learning_rate=rates[chosen], seed=seed, out=out
                    )
                ),
            }
        )
    return rows


def main() -> None:
    """Runs the comparison, prints the table and writes results and plot."""
    parser = argparse.ArgumentParser(description="NLCG against tuned baselines.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/demo"))
    parser.add_argument(
        "--optimizers",
        nargs="+",
        default=list(LEARNING_RATES),
        choices=list(LEARNING_RATES),
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    arguments = parser.parse_args()
    out = arguments.out
    try:
        configs = [
            Config(
                dataset="digits",
                model="mlp",
                num_validation=NUM_VALIDATION,
                num_epochs=NUM_EPOCHS,
                schedule="cosine",
                optimizer=name,
                batch_size=batch_size,
            )
            for name in arguments.optimizers
            for batch_size in arguments.batch_sizes
        ]
    except ValueError as error:
        parser.error(str(error))
    results = out / "results.jsonl"
    results.unlink(missing_ok=True)
    metrics.git_commit()  # as it is now, not when the runs end

    start = time.perf_counter()
    rows = []
    progress = tqdm.tqdm(configs, unit="comparison")
    for config in progress:
        progress.set_description(
            f"{config.optimizer} at batch size {config.batch_size}"
        )
        for row in compare(config, out):
            metrics.append_row(results, row)
            rows.append(row)
    seconds = time.perf_counter() - start

    print(
        f"\nHandwritten digits, {NUM_EPOCHS} epochs at every batch size: test accuracy "
        f"in percent,\nmean and standard deviation of {len(SEEDS)} seeds; behind @ the "
        f"learning rate, the best of 8\non {NUM_VALIDATION} validation images "
        "(* at the end of its grid).\n"
    )
    print(report.batch_size_table(rows))
    report.plot_demo(rows, out, out / "demo.png")
    print(f"\n{seconds:.0f} s. Plot: {out / 'demo.png'}, all runs: {results}")


if __name__ == "__main__":
    main()
