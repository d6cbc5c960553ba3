"""What a sweep chooses among its trials, and what that choice owes to luck."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import report

Row = dict[str, Any]

# What a trial chooses.
TUNED = "learning_rate", "schedule", "warmup", "l2", "weight_decay", "label_smoothing"
TUNED += ("optimizer_setting",)
# What it is chosen for.
GROUP = "batch_size", "num_epochs", "optimizer"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A trial that may be chosen.

    Attributes:
      trial: its row.
      repeats: the same settings with other seeds, on the same held-out images.
      tests: the same settings on the test set.
    """

    trial: Row
    repeats: list[Row]
    tests: list[Row]

    @property
    def held_out(self) -> list[float]:
        """Accuracies of the trial and its repeats."""
        return [accuracy(row) for row in (self.trial, *self.repeats)]


def trial_groups(out: pathlib.Path) -> dict[tuple, list[Row]]:
    """The trials of a sweep by batch size, number of epochs and optimizer."""
    return report.group_rows(report.load(out / "trials" / "results.jsonl"), *GROUP)


def accuracy(row: Row) -> float:
    """On held-out images; zero for a run that was given up or diverged."""
    return row["validation_accuracy"] if row["status"] == "finished" else 0.0


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The trials that finished, the best accuracy first; of equals, the least loss."""
    finished = [row for row in rows if row["status"] == "finished"]
    return sorted(
        finished, key=lambda row: (-row["validation_accuracy"], row["validation_loss"])
    )


def chosen(rows: Sequence[Row]) -> Row | None:
    """The best trial; None if none finished."""
    return next(iter(ranked(rows)), None)


def final_runs(
    out: pathlib.Path, num_epochs: float | None = None, num_trials: int | None = None
) -> list[Row]:
    """The runs that test what is chosen among trials.

    A sweep that went on with more trials has tested its former choices too.

    Args:
      out: folder of the sweep.
      num_epochs: of the runs; None: all lengths.
      num_trials: choose among the first so many, of optimizers that have them; None:
        among all there are.
    """
    best = {
        key: chosen(rows[:num_trials]) if len(rows) >= (num_trials or 0) else None
        for key, rows in trial_groups(out).items()
    }
    return [
        row
        for row in _rows(out, "final")
        if num_epochs in (None, row["config"]["num_epochs"])
        and (choice := best[tuple(row["config"][name] for name in GROUP)]) is not None
        and has_settings_of(row, choice)
    ]


def shortlist(out: pathlib.Path, trials: Sequence[Row], number: int) -> list[Candidate]:
    """The best few of some trials, the first first.

    Args:
      out: folder of the sweep.
      trials: of one optimizer, batch size and length.
      number: of the best to give; fewer if fewer finished.
    """
    repeated, tested = _rows(out, "repeats"), _rows(out, "final")
    return [
        Candidate(
            trial,
            [row for row in repeated if has_settings_of(row, trial)],
            [row for row in tested if has_settings_of(row, trial)],
        )
        for trial in ranked(trials)[:number]
    ]


def best_by_mean(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate whose mean over all its tuning runs is the highest.

    The best of many trials with one seed each has in part the best luck; a mean over
    further seeds has less of it.

    Returns:
      None if some have not been repeated, or there are none.
    """
    if not all(candidate.repeats for candidate in candidates):
        return None
    return max(candidates, key=lambda c: np.mean(c.held_out), default=None)


def _rows(out: pathlib.Path, kind: str) -> list[Row]:
    path = out / kind / "results.jsonl"
    return report.load(path) if path.exists() else []


def has_settings_of(row: Row, trial: Row) -> bool:
    """Whether a run has the settings of a trial (and its optimizer and length)."""
    names = *GROUP, *TUNED
    return all(row["config"][name] == trial["config"][name] for name in names)


def median(rows: Sequence[Row]) -> float:
    """The median accuracy of trials: what an arbitrary setting gives.

    A trial that was given up or diverged counts as worse than any other.
    """
    return float(np.median([accuracy(row) for row in rows]))


def expected_best(rows: Sequence[Row], number: int) -> float:
    """The best accuracy of `number` trials in percent, on average over such choices.

    A trial that was given up or diverged counts as worse than any other.
    """
    accuracies, shares = _best_of(rows, number)
    return 100 * float(np.dot(accuracies, shares))


def chance_ahead(ours: Sequence[Row], others: Sequence[Row], number: int) -> float:
    """How often the best of `number` trials is ahead of the other optimizer's best.

    It is the share of all choices of so many of either's trials, ties counted half.
    What it says of the luck in tuning is not in the spread over seeds.
    """
    accuracies, shares = _best_of(ours, number)
    theirs, their_shares = _best_of(others, number)
    ahead = np.heaviside(np.subtract.outer(accuracies, theirs), 0.5)
    return float(shares @ ahead @ their_shares)


def _best_of(rows: Sequence[Row], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of trials, and the share of choices in which each is the best."""
    # The i-th smallest is the largest of a choice if all others are below it.
    ways = [
        math.comb(i, number - 1) / math.comb(len(rows), number)
        for i in range(len(rows))
    ]
    return np.sort([accuracy(row) for row in rows]), np.array(ways)
