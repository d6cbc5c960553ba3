"""Tunes optimizers with the same budget each, and tests what was chosen.

    python -m benchmarks.sweep --config cifar100_resnet32 --data-dir data \
        --num-epochs 50 100 200 --num-trials 16 --out runs/sweep

For every optimizer, batch size and length of run:

1. `num_trials` runs at points of one quasi-random sequence (Halton, scrambled) in the
   optimizer's search space, `SPACES`, each on the training set less `num_validation`
   images, with one seed. All give up after a quarter of the run, in tens of steps, if
   the cross-entropy is not below that of guessing (`give_up_at` of a `Config`).
   `--schedules` takes the place of those in the spaces.
2. The settings with the best accuracy on those images train on the whole training set,
   with other seeds; only these runs read the test set. `--num-tested` does so with
   several of the best, whose order on those images is luck in part; the tables have
   the first. `--repeat-seeds` repeats those trials with further seeds, so that they
   can be told apart without the test set.

Rows go to `results.jsonl` in `<out>/trials`, `<out>/repeats` and `<out>/final`. A sweep
that was stopped goes on where it was, and one with more trials, seeds or optimizers
adds to what is there. `python -m benchmarks.sweep_report <out>` makes the table and the
plot from the rows alone.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import checkpoint, metrics, report, sweep_choice, sweep_report
from benchmarks.config import FREE, Config, named, names
from benchmarks.schedules import SCHEDULES
from benchmarks.train import train

Row = dict[str, Any]

TUNING_SEED = 0
GIVE_UP_AT = 0.25

# ------------------------------------------------------------------------------
#  Search spaces
# ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Space:
    """What is tried for one optimizer.

    Attributes:
      learning_rates: least and greatest, on a logarithmic scale, at a mini-batch of
        16,384 images; proportional to the size of the mini-batch, or to its square
        root for those in `SQUARE_ROOT`.
      settings: of the optimizer's own parameter (`optimizers.SETTINGS`).
      decoupled: whether weight decay is decoupled; else it is the L2 penalty.
      schedules: of the learning rate.
    """

    learning_rates: tuple[float, float]
    settings: tuple[float | None, ...] = (None,)
    decoupled: bool = False
    schedules: tuple[str, ...] = ("reference", "linear", "cosine")


# Three decades of learning rates for everyone, about where each is used.
_NLCG = Space((0.1, 100.0), (0.8, 0.9, 0.95, 1.0))
_NLCG_ADAM = Space((0.0003, 0.3), (0.8, 0.9, 0.95, 1.0), decoupled=True)
_NLCG_MUON = Space((0.001, 1.0), (0.8, 0.9, 0.95, 1.0), decoupled=True)
SPACES = {
    "nlcg": _NLCG,
    "nlcg_online": _NLCG,
    "nlcg_pr": _NLCG,
    "nlcg_hutchinson": Space((0.03, 30.0), (0.03, 0.1, 0.3, 1.0)),
    "nlcg_gnb": Space((0.03, 30.0), (0.03, 0.1, 0.3, 1.0)),
    "nlcg_adam": _NLCG_ADAM,
    "nlcg_muon": _NLCG_MUON,
    "nlcg_muon_pr": _NLCG_MUON,
    "nlcg_muon_nesterov": _NLCG_MUON,
    # Parts of NLCG: what each of them earns.
    "nlcg_fr": _NLCG,
    "nlcg_fr_step": _NLCG,
    "nlcg_fr_bfgs": _NLCG,
    "nlcg_no_rollback": _NLCG,
    "nlcg_constant": Space((0.1, 100.0), (0.8, 0.9, 0.95, 0.98)),
    "nlcg_adam_fr": _NLCG_ADAM,
    "nlcg_adam_constant": Space((0.0003, 0.3), (0.8, 0.9, 0.95, 0.98), decoupled=True),
    "nlcg_muon_constant": Space((0.001, 1.0), (0.8, 0.9, 0.95, 0.98), decoupled=True),
    "steepest_muon": Space((0.001, 1.0), decoupled=True),
    "sgd_step": Space((0.1, 100.0)),
    "sgd": Space((0.1, 100.0)),
    "momentum": Space((0.03, 30.0), (0.8, 0.9, 0.95, 0.98)),
    "nesterov": Space((0.03, 30.0), (0.8, 0.9, 0.95, 0.98)),
    "rmsprop": Space((0.003, 3.0), (0.9, 0.95, 0.99, 0.999)),
    "adamw": Space((0.0003, 0.3), (0.9, 0.95, 0.99, 0.999), decoupled=True),
    "adamw_b1": Space((0.0003, 0.3), (0.8, 0.9, 0.95, 0.98), decoupled=True),
    "lars": Space((0.3, 300.0), (0.8, 0.9, 0.95, 0.98)),
    "lamb": Space((0.001, 1.0), (0.9, 0.95, 0.99, 0.999), decoupled=True),
    "muon": Space((0.001, 1.0), (0.8, 0.9, 0.95, 0.98), decoupled=True),
    # It needs no schedule but warm-up.
    "schedule_free": Space(
        (0.1, 100.0), (0.8, 0.9, 0.95, 0.98), schedules=("constant",)
    ),
}
SQUARE_ROOT = ("rmsprop", "adamw", "adamw_b1", "lars", "lamb", "muon", "nlcg_muon")
SQUARE_ROOT += ("nlcg_adam", "nlcg_adam_fr", "nlcg_adam_constant")
SQUARE_ROOT += ("nlcg_muon_pr", "nlcg_muon_nesterov", "nlcg_muon_constant")
SQUARE_ROOT += ("steepest_muon",)
WARMUPS = (0.02, 0.05, 0.1, 0.2)
L2 = (1e-5, 1e-3)
WEIGHT_DECAY = (1e-3, 1.0)
LABEL_SMOOTHING = (0.0, 0.1)

DIMENSIONS = 6


def sample(
    name: str,
    point: Sequence[float],
    batch_size: int,
    schedules: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The settings at a point of the unit cube.

    Args:
      name: of the optimizer.
      point: `DIMENSIONS` numbers in [0, 1).
      batch_size: images in a mini-batch.
      schedules: to choose from, in place of those in the optimizer's space.

    Returns:
      Fields of a `Config`.
    """
    space = SPACES[name]
    rate, schedule, warmup, decay, smoothing, setting = point
    scale = batch_size / 16_384
    if name in SQUARE_ROOT:
        scale **= 0.5
    decay = rounded(_logarithmic(decay, WEIGHT_DECAY if space.decoupled else L2))
    return {
        "learning_rate": rounded(scale * _logarithmic(rate, space.learning_rates)),
        "schedule": _choice(schedule, schedules or space.schedules),
        "warmup": _choice(warmup, WARMUPS),
        "l2": 0.0 if space.decoupled else decay,
        "weight_decay": decay if space.decoupled else 0.0,
        "label_smoothing": _choice(smoothing, LABEL_SMOOTHING),
        "optimizer_setting": _choice(setting, space.settings),
    }


def points(number: int) -> np.ndarray:
    """The first points of the sequence, the same for all optimizers."""
    from scipy.stats import qmc

    return qmc.Halton(DIMENSIONS, rng=np.random.default_rng(0)).random(number)


def _logarithmic(x: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return low * (high / low) ** x


def _choice(x: float, among: Sequence[Any]) -> Any:
    return among[int(x * len(among))]


def rounded(x: float) -> float:
    """As settings are written: three digits."""
    return float(f"{x:.3g}")


# ------------------------------------------------------------------------------
#  Runs
# ------------------------------------------------------------------------------


def trials(
    base: Config, number: int, schedules: Sequence[str] | None = None
) -> Iterator[Config]:
    """The runs to choose settings by.

    Args:
      base: optimizer, data, length of the runs.
      number: of runs.
      schedules: to try, in place of those in the optimizer's space.
    """
    for point in points(number):
        yield dataclasses.replace(
            base,
            seed=TUNING_SEED,
            give_up_at=GIVE_UP_AT,
            out=base.out / "trials",
            **sample(base.optimizer, point, base.batch_size, schedules),
        )


def repeats(base: Config, trial: Row, seeds: Sequence[int]) -> Iterator[Config]:
    """The runs of a trial with other seeds."""
    for seed in seeds:
        yield dataclasses.replace(
            base,
            seed=seed,
            give_up_at=GIVE_UP_AT,
            out=base.out / "repeats",
            **_tuned(trial),
        )


def finals(base: Config, trial: Row, seeds: Sequence[int]) -> Iterator[Config]:
    """The runs that test the settings of a trial."""
    for seed in seeds:
        yield dataclasses.replace(
            base, seed=seed, num_validation=0, out=base.out / "final", **_tuned(trial)
        )


def _tuned(trial: Row) -> dict[str, Any]:
    return {name: trial["config"][name] for name in sweep_choice.TUNED}


def run_or_recall(config: Config) -> Row:
    """The row of a run: that in its file, if it has been made."""
    wanted = identity(checkpoint.settings(config))
    # What rows from before a setting was there do not have.
    usual = checkpoint.settings(Config())
    path = config.out / "results.jsonl"
    for row in report.load(path) if path.exists() else ():
        if identity(usual | row["config"]) == wanted:
            return row
    return train(config)


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """What of a run's settings decides its result."""
    return {name: v for name, v in settings.items() if name not in FREE}


def check_study(base: Config, schedules: Sequence[str] | None = None) -> None:
    """Checks that a folder's trials are of the same study, which tables take them for.

    Raises:
      ValueError: if they differ in what no trial chooses, or chose a schedule that this
        study does not try.
    """
    schedules = schedules or SPACES[base.optimizer].schedules
    path = base.out / "trials" / "results.jsonl"
    wanted = identity(checkpoint.settings(base))
    for name in (*sweep_choice.GROUP, *sweep_choice.TUNED, "seed", "give_up_at"):
        del wanted[name]
    for row in report.load(path) if path.exists() else ():
        if row["config"]["batch_size"] != base.batch_size:
            continue  # which may have another number of microbatches
        schedule = row["config"]["schedule"]
        if row["config"]["optimizer"] == base.optimizer and schedule not in schedules:
            raise ValueError(
                f"{base.out} holds a sweep with schedule {schedule!r}, this one tries "
                f"{', '.join(schedules)}: pass another --out"
            )
        for name, value in wanted.items():
            saved = row["config"].get(name, value)
            if saved != value:
                raise ValueError(
                    f"{base.out} holds a sweep with {name} {saved!r}, this one has "
                    f"{value!r}: pass another --out, or the same {name} to go on"
                )


def sweep(
    base: Config,
    num_trials: int,
    seeds: Sequence[int],
    num_tested: int = 1,
    repeat_seeds: Sequence[int] = (),
    schedules: Sequence[str] | None = None,
) -> list[Row]:
    """Tunes and tests one optimizer; returns the rows of the tests.

    Args:
      base: optimizer, data, length of the runs.
      num_trials: settings to try.
      seeds: of the tests.
      num_tested: how many of the best trials to test.
      repeat_seeds: of the runs that repeat these trials before.
      schedules: to try, in place of those in the optimizer's space.
    """
    rows = []
    for i, config in enumerate(trials(base, num_trials, schedules)):
        row = run_or_recall(config)
        rows.append(row)
        print(
            f"{base.optimizer} b{base.batch_size} e{base.num_epochs:g} "
            f"trial {i + 1}/{num_trials}: {row['status']} "
            f"{row.get('validation_accuracy', '')}",
            flush=True,
        )
    best = sweep_choice.ranked(rows)[:num_tested]
    if not best:
        print(f"{base.optimizer}: no trial finished, so there is nothing to test")
    for trial in best:
        for config in repeats(base, trial, repeat_seeds):
            run_or_recall(config)
    configs = (config for trial in best for config in finals(base, trial, seeds))
    return list(map(run_or_recall, configs))


# ------------------------------------------------------------------------------
#  Command line
# ------------------------------------------------------------------------------


def _configs(base: Config, arguments: argparse.Namespace) -> Iterator[Config]:
    """What is tuned: of all runs but for what trials choose, and seeds."""
    num_microbatches = arguments.num_microbatches
    if num_microbatches is None:
        num_microbatches = base.num_microbatches
    for batch_size in arguments.batch_sizes or [base.batch_size]:
        for optimizer in arguments.optimizers:
            # Runs of all lengths share what is compiled.
            for num_epochs in arguments.num_epochs or [base.num_epochs]:
                yield dataclasses.replace(
                    base,
                    optimizer=optimizer,
                    model=arguments.model or base.model,
                    batch_size=batch_size,
                    num_epochs=num_epochs,
                    num_microbatches=num_microbatches,
                    num_validation=arguments.num_validation,
                    data_dir=arguments.data_dir,
                    out=arguments.out,
                    progress=not arguments.no_progress,
                )


def main() -> None:
    """Runs the sweep that the command line describes, and reports."""
    parser = argparse.ArgumentParser(description="Equal tuning for all optimizers.")
    parser.add_argument("--config", default="cifar100_resnet32", choices=names())
    parser.add_argument("--model", help="in place of the config's")
    parser.add_argument("--optimizers", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--num-epochs", nargs="+", type=float)
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--num-microbatches", type=int)
    parser.add_argument("--num-validation", type=int, default=5_000)
    parser.add_argument("--num-trials", type=int, default=16)
    parser.add_argument(
        "--schedules", nargs="+", choices=SCHEDULES, help="in place of the spaces'"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--num-tested", type=int, default=1, help="best trials to test")
    parser.add_argument(
        "--repeat-seeds", nargs="+", type=int, default=[], help="of those, repeated"
    )
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/sweep"))
    parser.add_argument("--no-progress", action="store_true")
    arguments = parser.parse_args()
    if TUNING_SEED in arguments.seeds:
        parser.error(f"--seeds must not have {TUNING_SEED}: settings are chosen by it")
    if TUNING_SEED in arguments.repeat_seeds:
        parser.error(f"--repeat-seeds must not have {TUNING_SEED}: the trials have it")
    if both := {*arguments.repeat_seeds} & {*arguments.seeds}:
        parser.error(
            f"--repeat-seeds must not have {min(both)}, a seed of the tests, without "
            "which trials are to be told apart"
        )
    for name in ("num_trials", "num_tested", "num_validation"):
        if (value := getattr(arguments, name)) < 1:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} must be positive, got {value}")
    base = named(arguments.config)
    metrics.git_commit()  # as it is now, not when the runs end
    try:
        configs = list(_configs(base, arguments))
        for config in configs:
            check_study(config, arguments.schedules)
            for seed in (*arguments.seeds, *arguments.repeat_seeds):
                dataclasses.replace(config, seed=seed)
    except ValueError as error:
        parser.error(str(error))
    for config in configs:
        sweep(
            config,
            arguments.num_trials,
            arguments.seeds,
            arguments.num_tested,
            arguments.repeat_seeds,
            arguments.schedules,
        )
    print(sweep_report.summarize(arguments.out))
    print(f"Rows, table and plot: {arguments.out}")


if __name__ == "__main__":
    main()
