"""What a step with curvature costs, against one evaluation of value and gradient.

    python -m benchmarks.curvature_cost --out benchmarks/results/curvature_cost

A ResNet with batch normalisation; loss and batch statistics come from one forward pass.
Operations are XLA's count for the compiled program, seconds the median over a few runs.
`curvature_search` is the gradient and the Hessian-vector product along the update that
`scale_by_curvature_line_search` takes, in one program. `averaged` is the mean cost of a
step when one in ten is such a step.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from benchmarks import metrics, models
from optax_nlcg import value_grad_and_hessian_diagonal

REFRESH_EVERY = 10


def programs(model: models.Network) -> dict[str, Callable]:
    """The evaluations to compare, each of (params, statistics, x, y, key)."""

    def loss_fn(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), (logits, changed)

    def loss_and_statistics(*args):
        value, (_, changed) = loss_fn(*args)
        return value, changed

    def gradient(*args):
        return jax.value_and_grad(loss_and_statistics, has_aux=True)(*args[:-1])

    hutchinson = value_grad_and_hessian_diagonal(loss_and_statistics, has_aux=True)
    bartlett = value_grad_and_hessian_diagonal(
        loss_fn, method="gauss_newton_bartlett", has_aux=True
    )

    def curvature_search(params, *args):
        value, grads = gradient(params, *args)

        def gradient_fn(params):
            return jax.grad(lambda p: loss_and_statistics(p, *args[:-1])[0])(params)

        _, product = jax.jvp(gradient_fn, (params,), (grads,))
        return value, grads, product

    return {
        "value_and_grad": gradient,
        "hutchinson": lambda *args: hutchinson(*args[:-1], key=args[-1]),
        "gauss_newton_bartlett": lambda *args: bartlett(*args[:-1], key=args[-1]),
        "curvature_search": curvature_search,
    }


def measure(programs: dict[str, Callable], arguments: tuple, repeats: int) -> list:
    """Compiles and times programs, in turns, so that all see the same machine."""
    compiled = {
        name: jax.jit(program).lower(*arguments).compile()
        for name, program in programs.items()
    }
    seconds = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            if turn > 0:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, run in compiled.items():
        memory = run.memory_analysis()
        rows.append(
            {
                "program": name,
                "flops": metrics.flops(run),
                "seconds": statistics.median(seconds[name]),
                "temporary_bytes": memory.temp_size_in_bytes if memory else None,
            }
        )
    return rows


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description="Cost of curvature.")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/curvature_cost")
    )
    options = parser.parse_args()
    dtype = models.platform_dtype(options.dtype)
    model = models.build(options.model, 100, dtype)
    key = jax.random.key(0)
    images = jax.random.normal(key, (options.batch_size, 32, 32, 3))
    labels = jax.random.randint(key, (options.batch_size,), 0, 100)
    variables = model.init(key, images, train=False)
    arguments = (variables["params"], variables["batch_stats"], images, labels, key)

    rows = measure(programs(model), arguments, options.repeats)
    for row in rows:
        for quantity in ("flops", "seconds", "temporary_bytes"):
            if rows[0][quantity]:
                ratio = row[quantity] / rows[0][quantity]
                row[f"{quantity}_ratio"] = ratio
                if quantity != "temporary_bytes":  # a peak has no average
                    row[f"{quantity}_averaged"] = 1 + (ratio - 1) / REFRESH_EVERY
        print(
            f"{row['program']:22} flops {row['flops_ratio']:.2f} "
            f"(averaged {row['flops_averaged']:.3f})  "
            f"seconds {row['seconds_ratio']:.2f} "
            f"(averaged {row['seconds_averaged']:.3f})"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "model": options.model,
        "dtype": dtype.name,
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "refresh_every": REFRESH_EVERY,
        "rows": rows,
        **metrics.environment(num_devices=1),
    }
    name = f"{jax.default_backend()}-{options.model}-b{options.batch_size}.json"
    (options.out / name).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
