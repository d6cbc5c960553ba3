"""Writes the results in the README from the committed rows.

    python -m benchmarks.readme

replaces what stands between the README's two `results` marks; a test checks that
nothing else is there.
"""

import pathlib
import re

import numpy as np

from benchmarks import growing_batch, report, sweep_choice, sweep_pairs, sweep_report

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = pathlib.Path("benchmarks/results")
MARKS = re.compile(r"(<!-- results:begin -->\n).*(<!-- results:end -->)", re.DOTALL)


def photographs() -> str:
    """Few steps of large batches on photographs, everything tuned."""
    trials = {
        len(rows)
        for name in sweep_pairs.SWEEPS
        for rows in sweep_choice.trial_groups(ROOT / RESULTS / name).values()
    }
    *fewer, most = sorted(trials)

    shortest = ROOT / RESULTS / "sweep_cifar100_16x16_b8192", 4
    parts = "steepest_muon", "muon", "nlcg_muon_constant", "nlcg_muon"
    number = min(
        len(rows)
        for (_, num_epochs, name), rows in sweep_choice.trial_groups(
            shortest[0]
        ).items()
        if name in parts and num_epochs == shortest[1]
    )
    tested = report.group_rows(sweep_choice.final_runs(*shortest, number), "optimizer")

    def mean(name: str) -> str:
        return f"{np.mean(sweep_pairs.accuracies(tested[name,])):.2f}"

    return f"""\
**CIFAR-100 and Tiny-ImageNet at 16x16 pixels, few steps of large batches.** In 24 steps
conjugate directions in Muon's metric are ahead of Muon at batch 8,192 by more than the
spread of seeds, at a quarter and at twice that batch within it:

![Test accuracy against batch size]({RESULTS / growing_batch.PICTURE})

`nlcg` is the paper's; `nlcg_muon` and `nlcg_adam` are conjugate directions around
Muon's orthogonalisation and around Adam's scaling. Everything is tuned anew on every
line: {", ".join(map(str, fewer))} or {most} trials on held-out images, as many for the
one as for the other, chose the learning rate, schedule, warm-up, weight decay, label
smoothing and one parameter of its own for each optimizer (of AdamW the second decay,
and with ResNet-8 at batch 8,192 the first too, whichever did better). Test accuracy of
averaged weights of ResNet-8 and a small transformer in percent, mean ± standard
deviation over seeds, three or more; bold where one is ahead of the other by more than
the sum of both deviations:

{sweep_pairs.table()}
`nlcg_muon` is ahead of Muon at batch 8,192, with both networks, on both data sets and
in 24, 48 and 97 steps; else they are level. `nlcg_adam` is ahead of AdamW everywhere,
and on CIFAR-100 at batch 8,192 of LAMB and LARS too.

How much of that is the luck of the trials? What 24 steps come to with half of the
trials, with all, and with the best three taken together, whose order on held-out images
is luck in part:

{_luck_of_the_trials()}

What earns the lead over Muon? In 24 steps at batch 8,192, with {number} trials of each,
Muon's metric with nothing of the past, `steepest_muon`, comes to
{mean("steepest_muon")} percent, and Muon with its average of gradients to
{mean("muon")}; with a constant times the last direction it is
{mean("nlcg_muon_constant")}, with the rule for beta {mean("nlcg_muon")}. So it is the
sum of directions, and the rule earns little. With one, two or four trials in place of
all the rule is ahead of a constant, and conjugate directions around Adam's and Muon's
metrics are ahead of AdamW and Muon at every batch size (plain `nlcg` of SGD, where that
ran, but not everywhere of Nesterov's momentum); a part of that is
[where the searched ranges lie](docs/choosing.md#learning-rate).
"""


def _luck_of_the_trials() -> str:
    """What the shortest runs come to with half the trials, all, and several of them."""
    sweeps = growing_batch.PANELS[growing_batch.SAME_STEPS]
    (number,) = {trials for _, _, trials in sweeps}
    lines = []
    for folder, num_epochs, _ in sweeps:
        out = ROOT / RESULTS / folder
        trials = report.group_rows(
            report.load(out / "trials" / "results.jsonl"), "num_epochs", "optimizer"
        )
        cells = []
        for first, several in (number // 2, 1), (number, 1), (number, 3):
            for name in "nlcg_muon", "muon":
                some = trials[num_epochs, name][:first]
                best = sweep_choice.shortlist(out, some, several)
                runs = [row for candidate in best for row in candidate.tests]
                cells.append(sweep_report.accuracy_and_spread(runs))
        size = trials[num_epochs, "muon"][0]["config"]["batch_size"]
        lines.append((f"{size:,}", *cells))
    kinds = f"best of {number // 2}", f"best of {number}", f"best three of {number}"
    header = "batch", *(f"{name}, {k}" for k in kinds for name in ("nlcg_muon", "muon"))
    return report.markdown(header, lines)


def digits() -> str:
    """The demo: accuracy at growing batch sizes."""
    folder = RESULTS / "demo"
    rows = report.load(ROOT / folder / "results.jsonl")
    trials = len(rows[0]["trials"]["learning_rate"])
    epochs = rows[0]["config"]["num_epochs"]
    return f"""\
**Handwritten digits, {epochs:g} epochs at every batch size** up to the whole training
set: test accuracy in percent, mean ± standard deviation over seeds. Every optimizer has
its best of {trials} learning rates (behind the @; * at the end of its grid), chosen on
a validation set. `ml_ncg` is the paper's authors' code to the letter. At the full batch
the four kinds of NLCG have the four highest means.

![Test accuracy against batch size, and the training loss]({folder}/demo.png)

{report.batch_size_table(rows)}

({report.circumstances(rows)}; `make demo` repeats it.)
"""


def cifar() -> str:
    """The paper's protocol: how far training comes."""
    folder = RESULTS / "cifar100_resnet32"
    rows = report.load(ROOT / folder / "results.jsonl")
    config = rows[0]["config"]
    lines = [
        (
            row["config"]["optimizer"],
            f"{row['train_loss']:.2f}",
            f"{100 * row['train_accuracy']:.1f}",
            f"{100 * row['test_accuracy']:.1f}",
            f"{row['images_per_second']:,.0f}",
        )
        for row in rows
    ]
    header = "optimizer", "training loss", "training accuracy %"
    header += "test accuracy %", "images/s"
    learning_rates = {row["learning_rate"] for row in rows}
    assert len(learning_rates) == 1
    running = {row["config"]["eval_statistics"] for row in rows} == {"running"}
    caveat = (
        """
The test accuracies of these runs say little: the averaged weights were evaluated with
running batch statistics, which lag behind weights that move this fast. The trainer now
evaluates with statistics of the averaged weights themselves; the runs are to be
repeated with that.
"""
        if running
        else ""
    )
    return f"""\
**ResNet-32 on CIFAR-100 at batch {config["batch_size"]:,}**, the paper's schedule for
all, learning rate {learning_rates.pop():g}, {rows[0]["num_steps"]} steps; nothing is
tuned for any of them, as in the paper. `ml_ncg` is the authors' code to the letter.

![Training loss and accuracy against steps]({folder}/curves.png)

{report.markdown(header, lines)}
{caveat}
({report.circumstances(rows)}; one run each.)
"""


def block() -> str:
    """Everything between the marks."""
    parts = photographs, digits, cifar
    return "\n".join(part() for part in parts)


def main() -> None:
    """Rewrites the README."""
    text = README.read_text()
    README.write_text(MARKS.sub(lambda m: m[1] + block() + m[2], text))


if __name__ == "__main__":
    main()
