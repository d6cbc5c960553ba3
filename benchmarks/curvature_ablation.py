"""What the settings of the Hessian-diagonal preconditioner do, one at a time.

    python -m benchmarks.curvature_ablation --data-dir data --out runs/ablation

Trains ResNet-32 on CIFAR-100 at batch 16384 for 50 epochs, few enough steps that
progress per step is what counts, and changes one setting of `nlcg_hutchinson` in each
run. Judged on 5,000 held-out training images; the test set is not read. The settings
are in the optimizer's state, so that the runs share one compiled program.
"""

import argparse
import dataclasses
import pathlib
from functools import partial

import jax
import optax

from benchmarks import optimizers, report
from benchmarks.config import Config, named
from benchmarks.train import train
from optax_nlcg import nlcg, scale_by_hessian_diagonal

# Changes to the defaults of `scale_by_hessian_diagonal`; the first is none.
SETTINGS = [
    {},
    {"floor": 0.1},
    {"power": 0.5},
    {"averaging": "signed"},
    {"decay": 0.0},
    {"floor": 0.01},
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


def main() -> None:
    """Runs the ablation."""
    parser = argparse.ArgumentParser(description="Hessian-diagonal ablation.")
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/ablation")
    )
    parser.add_argument("--num-epochs", type=float, default=50.0)
    arguments = parser.parse_args()
    # Variants differ in numbers that are inputs of the program: compile it once.
    jax.config.update("jax_compilation_cache_dir", str(arguments.out / "cache"))
    base: Config = dataclasses.replace(
        named("cifar100_resnet32"),
        data_dir=arguments.data_dir,
        out=arguments.out,
        num_epochs=arguments.num_epochs,
        num_validation=5000,
        schedule="linear",
        learning_rate=1.6,
    )
    variants = [{"optimizer": register(settings)} for settings in SETTINGS] + RUNS
    rows = []
    for changes in variants:
        config = dataclasses.replace(base, **{"optimizer": BASE, **changes})
        rows.append(train(config))
        print(report.table(rows[-1:]), flush=True)
    print(report.table(rows))


if __name__ == "__main__":
    main()
