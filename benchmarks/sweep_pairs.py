"""Conjugate directions beside what they are built on: the sweeps on photographs."""

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report, sweep_choice, sweep_report

SWEEPS = (
    "sweep_cifar100_16x16",
    "sweep_cifar100_16x16_constant",
    "sweep_cifar100_16x16_b8192",
    "sweep_cifar100_16x16_b8192_constant",
    "sweep_cifar100_16x16_b16384",
    "sweep_cifar100_16x16_b16384_constant",
    "sweep_cifar100_16x16_vit",
    "sweep_cifar100_16x16_vit_b8192",
    "sweep_tiny_imagenet_16x16_b8192",
)
# Those of a constant learning rate, which the others did not try.
CONSTANT_RATE = tuple(name for name in SWEEPS if name.endswith("_constant"))
FALLING_RATE = tuple(name for name in SWEEPS if name not in CONSTANT_RATE)
# Those whose choices were tuned further, and tested.
TUNED_FURTHER = (
    "sweep_cifar100_16x16_constant",
    "sweep_cifar100_16x16_b8192_constant",
)
# Nesterov's step, which Muon has and the paper's method has not.
NESTEROV = "nlcg_muon_nesterov"
# What is compared; of several sweeps of one optimizer, which differ in what they tune,
# the best.
PAIRS = (
    (NESTEROV, ("muon",)),
    ("nlcg_muon", ("muon",)),
    ("nlcg_adam", ("adamw", "adamw_b1")),
    ("nlcg", ("nesterov",)),
)
# The pair whose best trials were repeated with further seeds, and how many of them.
REPEATED = "nlcg_muon", "muon"
SHORTLISTED = 3
Runs = dict[str, list[report.Row]]
Choices = list[list[report.Row]]

_WHAT = "images and network", "batch", "steps"
_NAMES = {
    "cifar100_16x16": "CIFAR-100",
    "tiny_imagenet_16x16": "Tiny-ImageNet",
    "resnet8": "ResNet-8",
    "vit": "transformer",
}


class _Length(NamedTuple):
    """Runs of one length in a sweep.

    Attributes:
      what: it is, for a table.
      out: folder of the sweep.
      key: batch size and number of epochs.
      runs: what was tested, by optimizer; where choices were tuned further, the last.
      further: those of `runs` that are of choices tuned further.
    """

    what: tuple[str, ...]
    out: pathlib.Path
    key: tuple[int, float]
    runs: Runs
    further: Runs


def is_ahead(ours: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the one mean is above the other by more than both deviations."""
    spread = np.std(ours, ddof=1) + np.std(others, ddof=1)
    return bool(np.mean(ours) - np.mean(others) > spread)


def accuracies(rows: Sequence[report.Row]) -> list[float]:
    """Test accuracies of runs in percent."""
    return [100 * row["test_accuracy"] for row in rows]


def table() -> str:
    """Test accuracy in percent, mean and deviation over seeds, of every pair.

    The one that `is_ahead` of the other is bold; of what stands beside several, if it
    is ahead of all.
    """
    lines, every = [], []
    for what, _, _, runs, _ in _lengths():
        cells = [cell for names in _beside() for cell in _cells(runs, *names)]
        lines.append((*what, *cells))
        every += itertools.chain(*runs.values())
    header = (
        *_WHAT,
        *(name for ours, others in _beside() for name in (*ours, others[0])),
    )
    return f"{report.markdown(header, lines)}\n\n({report.circumstances(every)})\n"


def chances() -> str:
    """How often the one of a pair has the better best of half its trials, in percent.

    On held-out images, over all choices of half the trials of either.
    """
    lines = []
    for what, out, key, runs, _ in _lengths():
        trials = sweep_choice.trial_groups(out)
        cells = []
        for ours, others in PAIRS:
            best = _best(runs, others) if ours in runs else None
            pair = [trials[*key, name] for name in (ours, best) if best]
            cells.append(_chance(*pair) if pair else "")
        lines.append((*what, *cells))
    header = *_WHAT, *(f"{ours} over {others[0]}" for ours, others in PAIRS)
    return f"{report.markdown(header, lines)}\n"


def choices() -> str:
    """What other choices among the same trials come to, where the best were repeated.

    Test accuracy in percent: of the best trial on held-out images with one seed; of the
    one of the best few with the highest mean there over several; and of all of those,
    where all were tested. The one of a pair that `is_ahead` of the other is bold.
    """
    lines, every = [], []
    for what, number, ours, theirs in repeated():
        both = (ours, theirs), (theirs, ours)
        for name, (chosen, others) in zip(REPEATED, both, strict=True):
            lines.append((*what, str(number), name, *map(_cell, chosen, others)))
        every += itertools.chain(*ours, *theirs)
    kinds = "one seed", "several seeds", f"all {SHORTLISTED}"
    header = *_WHAT, "trials", "optimizer", *kinds
    return f"{report.markdown(header, lines)}\n\n({report.circumstances(every)})\n"


def tuned_further(out: pathlib.Path) -> Runs:
    """The tests of what further settings around a sweep's choices came to.

    Args:
      out: folder of the sweep.

    Returns:
      Them by optimizer; nothing where none were tried, or none were tested.
    """
    if out.name not in TUNED_FURTHER:
        return {}
    return _by_optimizer(report.load(out / "past" / "final" / "results.jsonl"))


def repeated(
    folders: Sequence[str] = SWEEPS,
) -> Iterator[tuple[tuple[str, ...], int, Choices, Choices]]:
    """Where the best trials of `REPEATED` were repeated.

    Args:
      folders: of sweeps.

    Yields:
      What it is, the number of trials, and for either optimizer the tests of its
      choices: the best trial, the one of the best few with the highest mean, and all of
      those.
    """
    for what, out, key, *_ in _lengths(folders):
        trials = sweep_choice.trial_groups(out)
        pair = [trials.get((*key, name), []) for name in REPEATED]
        ours, theirs = (choices_of(out, rows) for rows in pair)
        if ours and theirs:
            yield what, len(pair[0]), ours, theirs


def choices_of(out: pathlib.Path, trials: Sequence[report.Row]) -> Choices | None:
    """The tests of three choices among trials; None where they were not repeated.

    They are the best trial, the one of the best few with the highest mean over several
    seeds, and all of those, or nothing where some were not tested.
    """
    best = sweep_choice.shortlist(out, trials, SHORTLISTED)
    by_mean = sweep_choice.best_by_mean(best)
    if by_mean is None:
        return None
    tested = all(candidate.tests for candidate in best)
    every = [row for candidate in best for row in candidate.tests if tested]
    return [best[0].tests, by_mean.tests, every]


def settings() -> str:
    """What was chosen for conjugate directions: where to start from."""
    lines = []
    for what, out, key, runs, further in _lengths():
        trials = sweep_choice.trial_groups(out)
        for name, _ in PAIRS:
            if name not in runs:
                continue
            if name in further:
                chosen = further[name][0]
            else:
                best = sweep_choice.shortlist(out, trials[*key, name], SHORTLISTED)
                chosen = (sweep_choice.best_by_mean(best) or best[0]).trial
            lines.append((*what, name, *_setting(chosen["config"])))
    tuned = "rate", "schedule", "warm-up", "decay", "smoothing", "largest beta"
    header = *_WHAT, "optimizer", *tuned
    return f"{report.markdown(header, lines)}\n"


def _setting(config: dict[str, Any]) -> tuple[str, ...]:
    l2, decay = config["l2"], config["weight_decay"]
    return (
        f"{config['learning_rate']:g}",
        config["schedule"],
        f"{config['warmup']:g}",
        f"{l2:g}, in the loss" if l2 else f"{decay:g}",
        f"{config['label_smoothing']:g}",
        f"{config['optimizer_setting']:g}",
    )


def _chance(ours: Sequence[report.Row], others: Sequence[report.Row]) -> str:
    half = len(ours) // 2
    share = sweep_choice.chance_ahead(ours, others, half)
    return f"{100 * share:.0f} ({half} of {len(ours)})"


def _lengths(folders: Sequence[str] = SWEEPS) -> list[_Length]:
    """All lengths of runs; those with a constant rate behind those with falling ones.

    Args:
      folders: of sweeps, those on the same images with the same network together.
    """
    found = []
    for folder in folders:
        out = report.RESULTS / folder
        by_length = report.group_rows(
            sweep_choice.final_runs(out), "batch_size", "num_epochs"
        )
        for key, rows in by_length.items():
            config = rows[0]["config"]
            name = f"{_NAMES[config['dataset']]}, {_NAMES[config['model']]}"
            size, steps = f"{config['batch_size']:,}", f"{report.num_steps(rows):,}"
            if folder in CONSTANT_RATE:  # a column of its own would be one too many
                steps += ", constant"
            further = tuned_further(out)
            runs = _by_optimizer(rows) | further
            found.append(_Length((name, size, steps), out, key, runs, further))
    names = [length.what[0] for length in found]
    return sorted(found, key=lambda length: (names.index(length.what[0]), *length.key))


def _by_optimizer(rows: Sequence[report.Row]) -> Runs:
    groups = report.group_rows(rows, "optimizer")
    return {name: same for (name,), same in groups.items()}


def _best(runs: Runs, names: Sequence[str]) -> str | None:
    """The one with the highest accuracy of those that ran."""
    ran = [name for name in names if name in runs]
    return max(ran, key=lambda name: np.mean(accuracies(runs[name])), default=None)


def _beside() -> list[tuple[list[str], Sequence[str]]]:
    """What is compared with the same others, and those."""
    by_others = itertools.groupby(PAIRS, key=lambda pair: pair[1])
    return [([name for name, _ in pairs], others) for others, pairs in by_others]


def _cells(runs: Runs, names: Sequence[str], others: Sequence[str]) -> list[str]:
    best = _best(runs, others)
    theirs = runs[best] if best is not None else []
    ours = [runs.get(name, []) for name in names]
    return [*(_cell(rows, theirs) for rows in ours), _cell(theirs, *ours)]


def _cell(rows: list[report.Row], *others: list[report.Row]) -> str:
    if not rows:
        return ""
    text = sweep_report.accuracy_and_spread(rows)
    ahead = [is_ahead(accuracies(rows), accuracies(runs)) for runs in others if runs]
    return f"**{text}**" if ahead and all(ahead) else text
