"""Two questions about curvature, answered on handwritten digits.

    python -m benchmarks.curvature_digits --out benchmarks/results/curvature_digits

Search: does the curvature line search, with nothing tuned, do as well as NLCG with a
tuned learning rate? At three batch sizes, and with a fifth of the training labels drawn
at random, so that mini-batches disagree and steps must be kept short.

Refresh: when a new estimate of the Hessian's diagonal changes the preconditioner,
should the direction start anew (`restart_every`), or is it kept?

The learning rate is the best of eight, the schedule the best of two (constant, linear
to zero), by the mean validation accuracy of three seeds. The test set is read once,
after training anew with eight other seeds. A network of two hidden layers, 30 epochs,
Fletcher-Reeves.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import data, metrics
from optax_nlcg import (
    nlcg,
    scale_by_conjugate_direction,
    scale_by_curvature_line_search,
    scale_by_hessian_diagonal,
)

BATCH_SIZES = (32, 128, 512)
NUM_EPOCHS = 30
NUM_VALIDATION = 300
WIDTH = 128
L2 = 1e-4
RATES = tuple(2.0**i for i in range(-7, 1))
SCHEDULES = ("constant", "linear")
TUNING_SEEDS = (101, 102, 103)
SEEDS = tuple(range(1, 9))


def init_params(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """He-initialised layers, each a matrix and a bias."""
    sizes = (64, WIDTH, WIDTH, 10)
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (m, n)) * np.sqrt(2 / m), jnp.zeros(n))
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply(params, x):
    """Logits of the network."""
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = params[-1]
    return x @ weight + bias


def loss_fn(params, x, y):
    """Mean cross-entropy and an L2 penalty."""
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean(losses) + L2 / 2 * squares


def make_train(
    make_optimizer: Callable[..., optax.GradientTransformation],
    batch_size: int,
    schedule: str,
    train_set: tuple[np.ndarray, np.ndarray],
    eval_set: tuple[np.ndarray, np.ndarray],
) -> Callable[..., Any]:
    """A function of vectors of learning rates and seeds that trains and evaluates."""
    images, labels = map(jnp.asarray, train_set)
    steps_per_epoch = len(labels) // batch_size
    num_steps = NUM_EPOCHS * steps_per_epoch

    @jax.jit
    @jax.vmap
    def train(rate, seed):
        init_key, data_key = jax.random.split(jax.random.key(seed))
        schedules = {
            "constant": optax.constant_schedule(rate),
            "linear": optax.linear_schedule(rate, 0.0, num_steps),
        }
        tx = optax.with_extra_args_support(make_optimizer(schedules[schedule]))
        params = init_params(init_key)

        def step(carry, i):
            params, state = carry
            epoch, batch = i // steps_per_epoch, i % steps_per_epoch
            order = jax.random.permutation(
                jax.random.fold_in(data_key, epoch), len(labels)
            )
            indices = jax.lax.dynamic_slice(order, (batch * batch_size,), (batch_size,))
            fun = functools.partial(loss_fn, x=images[indices], y=labels[indices])
            value, grads = jax.value_and_grad(fun)(params)
            updates, state = tx.update(
                grads, state, params, value=value, grad=grads, value_fn=fun
            )
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(
            step, (params, tx.init(params)), jnp.arange(num_steps)
        )
        x, y = map(jnp.asarray, eval_set)
        accuracy = jnp.mean(jnp.argmax(apply(params, x), -1) == y)
        return accuracy, loss_fn(params, images, labels)

    def run(rates, seeds):
        accuracy, loss = train(jnp.array(rates), jnp.array(seeds))
        return np.asarray(accuracy), np.asarray(loss)

    return run


def load(noise: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Training, validation and test set; some training labels drawn at random."""
    train_set, validation = data.hold_out(data.load("digits", "train"), NUM_VALIDATION)
    rng = np.random.default_rng(0)
    labels = np.array(train_set.labels)
    changed = rng.random(len(labels)) < noise
    labels[changed] = rng.integers(0, 10, changed.sum())

    def pixels(split):
        images = np.asarray(split.images, np.float32).reshape(len(split.labels), -1)
        return images / images.max() - 0.3

    test = data.load("digits", "test")
    return {
        "train": (pixels(train_set), labels),
        "validation": (pixels(validation), np.asarray(validation.labels)),
        "test": (pixels(test), np.asarray(test.labels)),
    }


def measure(
    name: str, make_optimizer: Callable, batch_size: int, noise: float, *, tuned: bool
) -> dict[str, Any]:
    """Tunes if there is something to tune, then tests; one row."""
    sets = load(noise)
    rate, schedule = 1.0, "constant"
    if tuned:
        trials = []
        for candidate in SCHEDULES:
            run = make_train(
                make_optimizer, batch_size, candidate, sets["train"], sets["validation"]
            )
            grid = [(r, s) for r in RATES for s in TUNING_SEEDS]
            accuracy, _ = run(*zip(*grid, strict=True))
            means = accuracy.reshape(len(RATES), -1).mean(axis=1)
            trials += [(m, r, candidate) for m, r in zip(means, RATES, strict=True)]
        _, rate, schedule = max(trials)
    run = make_train(make_optimizer, batch_size, schedule, sets["train"], sets["test"])
    accuracy, loss = run([rate] * len(SEEDS), SEEDS)
    row = {
        "name": name,
        "batch_size": batch_size,
        "label_noise": noise,
        "tuned": tuned,
        "learning_rate": rate,
        "schedule": schedule,
        "test_accuracy": float(accuracy.mean()),
        "test_accuracy_std": float(accuracy.std(ddof=1)),
        "test_accuracy_min": float(accuracy.min()),
        "train_loss": float(loss.mean()),
        "seeds": list(SEEDS),
    }
    print(
        f"{name:32} batch {batch_size:4} noise {noise:.1f} rate {rate:<9} {schedule:8} "
        f"accuracy {row['test_accuracy']:.4f} +- {row['test_accuracy_std']:.4f} "
        f"train loss {row['train_loss']:.4f}",
        flush=True,
    )
    return row


def main() -> None:
    """Runs both comparisons and records them."""
    parser = argparse.ArgumentParser(description="Curvature on digits.")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/curvature_digits")
    )
    options = parser.parse_args()
    plain = functools.partial(
        nlcg, preconditioner=optax.identity(), line_search=optax.identity()
    )

    def searched(**settings):
        return functools.partial(
            plain, line_search=scale_by_curvature_line_search(**settings)
        )

    def preconditioned(update_every, restart_every):
        return functools.partial(
            _restarted,
            scale_by_hessian_diagonal(update_every=update_every),
            restart_every,
        )

    rows = []
    for noise in (0.0, 0.2):
        for batch_size in BATCH_SIZES:
            rows += [
                measure("tuned learning rate", plain, batch_size, noise, tuned=True),
                measure("curvature search", searched(), batch_size, noise, tuned=False),
                measure(
                    "curvature search, every 5 steps",
                    searched(update_every=5),
                    batch_size,
                    noise,
                    tuned=False,
                ),
            ]
    for batch_size in BATCH_SIZES[1:]:
        for update_every in (5, 20):
            for name, restart_every in (("kept", None), ("restarted", update_every)):
                rows.append(
                    measure(
                        f"refresh every {update_every}, {name}",
                        preconditioned(update_every, restart_every),
                        batch_size,
                        0.0,
                        tuned=True,
                    )
                )
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "num_epochs": NUM_EPOCHS,
        "rates": RATES,
        "schedules": SCHEDULES,
        "rows": rows,
        **metrics.environment(num_devices=1),
    }
    path = options.out / "results.json"
    path.write_text(json.dumps(record, indent=2) + "\n")


def _restarted(preconditioner, restart_every, learning_rate):
    """NLCG without line search that starts anew every so many steps."""
    return optax.chain(
        scale_by_conjugate_direction(
            preconditioner, beta_bounds=(0.0, 1.0), restart_every=restart_every
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


if __name__ == "__main__":
    main()
