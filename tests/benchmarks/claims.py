"""What tests of claims share: the rows, and accuracies of what was chosen."""

import numpy as np

from benchmarks import readme, report, sweep_choice, sweep_pairs

RESULTS = readme.ROOT / readme.RESULTS
# What conjugate directions are put around, by optimizer.
BUILT_ON = {"nlcg": "sgd", "nlcg_adam": "adamw", "nlcg_muon": "muon"}


def means_and_spreads(folder, num_epochs, *names, num_trials=None):
    """Of the test accuracies of what as many trials of each chose, in percent."""
    number = num_trials or min(
        len(rows)
        for (_, epochs, name), rows in sweep_choice.trial_groups(
            RESULTS / folder
        ).items()
        if epochs == num_epochs and name in names
    )
    groups = report.group_rows(
        sweep_choice.final_runs(RESULTS / folder, num_epochs, number), "optimizer"
    )
    values = [sweep_pairs.accuracies(groups[name,]) for name in names]
    assert all(len(v) >= 3 for v in values)
    return [(np.mean(v), np.std(v, ddof=1)) for v in values]
