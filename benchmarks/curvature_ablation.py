"""What the settings of the Hessian-diagonal preconditioner do, one at a time.

    python -m benchmarks.curvature_ablation --data-dir data --out runs/ablation

Trains ResNet-32 on CIFAR-100 at batch 16384 for 50 epochs, few enough steps that
progress per step is what counts, and changes one setting of `nlcg_hutchinson` in each
run. Judged on 5,000 held-out training images; the test set is not read. The settings
are in the optimizer's state, so that the runs share one compiled program.

    python -m benchmarks.curvature_ablation --reduced --out runs/ablation

is the same on a CPU in a few minutes: the small network on digits, full batch.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
import optax

from benchmarks import data, optimizers, report
from benchmarks.config import named
from benchmarks.train import train
from optax_nlcg import nlcg, scale_by_hessian_diagonal

# Changes to the defaults of `scale_by_hessian_diagonal`; the first is none.
SETTINGS = [
    {},
    {"floor": 0.03},
    {"power": 0.5},
    {"averaging": "signed"},
    {"decay": 0.0},
    {"floor": 0.01},
    {"floor": 0.3},
    {"decay": 0.99},
    {"averaging": "signed", "decay": 0.99},
    {"average_spatial": True},
]
# Changes to the run, with the defaults; the optimizers without curvature for scale.
RUNS = [
    {"refresh_every": 30},
    {"learning_rate": 3.2},
    {"learning_rate": 0.8},
    {"optimizer": "nlcg_gnb"},
    {"optimizer": "nlcg_fr_step"},
    {"optimizer": "nlcg", "learning_rate": 6.4},
    {"optimizer": "nesterov"},
    {"refresh_every": 3},
]
BASE = "nlcg_hutchinson"


def name_of(changes: dict) -> str:
    """Names a variant by its changes."""
    return " ".join([BASE, *(f"{key}={value}" for key, value in changes.items())])


def register(settings: dict) -> str:
    """Adds a variant to the optimizers and returns its name."""
    name = name_of(settings)
    make = optax.inject_hyperparams(scale_by_hessian_diagonal)
    preconditioner = make(estimator=None, **settings)
    optimizers.OPTIMIZERS[name] = partial(nlcg, preconditioner=preconditioner)
    optimizers.ESTIMATORS[name] = optimizers.ESTIMATORS[BASE]
    return name


def table(rows: Sequence[report.Row]) -> str:
    """Makes a table of variants, with mean and spread over seeds."""
    groups = {}
    for row in rows:
        config = row["config"]
        changed = config["optimizer"].removeprefix(BASE).strip() or "defaults"
        key = changed, row["learning_rate"], config["refresh_every"]
        groups.setdefault(key, []).append(row)

    def cell(group, name, scale=1.0):
        values = scale * np.array([float(row[name]) for row in group])
        spread = f" ± {values.std(ddof=1):.3g}" if len(values) > 1 else ""
        return f"{values.mean():.4g}{spread}"

    lines = [
        (
            *(changed, f"{rate:g}", str(every), cell(group, "train_loss")),
            cell(group, "validation_accuracy", 100),
            f"{group[0]['gradient_equivalents']:.4g}",  # the same for every seed
        )
        for (changed, rate, every), group in groups.items()
    ]
    header = "changed", "learning rate", "refresh every", "training loss"
    return report.markdown((*header, "validation accuracy %", "gradients"), lines)


def main() -> None:
    """Runs the ablation."""
    parser = argparse.ArgumentParser(description="Hessian-diagonal ablation.")
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/ablation")
    )
    parser.add_argument("--reduced", action="store_true", help="digits, on a CPU")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    # Variants differ in numbers that are inputs of the program: compile it once.
    jax.config.update("jax_compilation_cache_dir", str(arguments.out / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    common = {"out": arguments.out, "schedule": "linear", "learning_rate": 1.6}
    if arguments.reduced:
        num_train = data.info("digits").num_train - 300
        base = dataclasses.replace(
            named("digits"),
            **common,
            num_epochs=100,
            num_validation=300,
            batch_size=num_train,
            num_devices=1,
        )
    else:
        base = dataclasses.replace(
            named("cifar100_resnet32"),
            **common,
            data_dir=arguments.data_dir,
            num_epochs=50,
            num_validation=5000,
        )
    variants = [{"optimizer": register(settings)} for settings in SETTINGS] + RUNS
    rows = []
    for changes in variants:
        for seed in arguments.seeds:
            settings = {"optimizer": BASE, "seed": seed, **changes}
            rows.append(train(dataclasses.replace(base, **settings)))
    text = table(rows)
    (arguments.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
