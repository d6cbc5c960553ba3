"""Writes the results in the README from the committed rows.

    python -m benchmarks.readme

replaces what stands between the README's two `results` marks; a test checks that
nothing else is there.
"""

import pathlib
import re

from benchmarks import growing_batch, report, sweep_report

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = pathlib.Path("benchmarks/results")
MARKS = re.compile(r"(<!-- results:begin -->\n).*(<!-- results:end -->)", re.DOTALL)


def largest_batch() -> str:
    """The largest batch on photographs, everything tuned."""
    small, large = growing_batch.SWEEPS["ResNet-8"]
    folder = RESULTS / large
    rows = report.load(ROOT / folder / "final" / "results.jsonl")
    (batch_size,) = {row["config"]["batch_size"] for row in rows}
    epochs, more, most = sorted({row["config"]["num_epochs"] for row in rows})
    fewer, number = map(growing_batch.num_trials, (small, large))
    assert growing_batch.num_trials(large, more) == number
    return f"""\
**CIFAR-100 at 16x16 pixels, the same epochs at four times the batch**, everything tuned
anew at each, in {fewer} and in {number} trials for every optimizer:

![Test accuracy against batch size]({RESULTS / growing_batch.PICTURE})

`nlcg` is the paper's; `nlcg_muon` and `nlcg_adam` are conjugate directions around
Muon's orthogonalisation and around Adam's scaling. At batch {batch_size:,}
`nlcg_muon` is ahead of Muon with both networks, and `nlcg_adam` of AdamW, LAMB and
LARS, by more than the spread of seeds. A constant in place of the rule for beta,
`nlcg_muon_constant`, is as good: what is ahead of Muon is its metric inside the sum of
directions in place of around it. Test accuracy of ResNet-8 there in percent, mean
± standard deviation over seeds, after {epochs:g} epochs and, for Muon with and without
conjugate directions, {more:g} and {most:g}; {number} trials on held-out images, of
{most:g} epochs {growing_batch.num_trials(large, most)}, chose the learning rate (behind
the @), schedule, warm-up, weight decay, label smoothing and one parameter of its own
for every optimizer and length (of AdamW the second decay, in `adamw_b1` the first):

{sweep_report.by_steps(ROOT / folder)}
The best of fewer trials, on the held-out images:

![Accuracy of the best against the number of trials]({folder}/budget.png)
"""


def second_data_set() -> str:
    """The largest batch on other photographs."""
    name = "sweep_tiny_imagenet_16x16_b8192"
    rows = sweep_report.tested(ROOT / RESULTS / name)
    (batch_size,) = {row["config"]["batch_size"] for row in rows}
    (epochs,) = {row["config"]["num_epochs"] for row in rows}
    return f"""\
**Tiny-ImageNet at 16x16 pixels, ResNet-8, batch {batch_size:,}**: {epochs:g} epochs of
twice the images with twice the classes, all tuned likewise, in
{growing_batch.num_trials(name, epochs)} trials each. It is the same picture:
`nlcg_muon` ahead of Muon and `nlcg_adam` of AdamW by more than the spread of seeds, and
a constant as good as the rule for beta:

{sweep_report.by_steps(ROOT / RESULTS / name)}"""


def small_photographs() -> str:
    """Few steps of large batches on photographs, everything tuned."""
    folder = RESULTS / "sweep_cifar100_16x16"
    rows = report.load(ROOT / folder / "final" / "results.jsonl")
    batch_size = rows[0]["config"]["batch_size"]
    return f"""\
**CIFAR-100 at 16x16 pixels, ResNet-8, batch {batch_size:,}**, all tuned likewise.
`nlcg_adam` is ahead of AdamW and `nlcg_muon` level with Muon. With a few trials instead
of twelve they are ahead of both, as the second plot has it; a part of that is
[where the searched ranges lie](docs/choosing.md#learning-rate). Here the rule for beta
is ahead of a constant.

![Accuracy against the number of steps]({folder}/accuracy.png)

![Accuracy of the best against the number of trials]({folder}/budget.png)

{sweep_report.by_steps(ROOT / folder)}"""


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
    parts = largest_batch, second_data_set, small_photographs, digits, cifar
    return "\n".join(part() for part in parts)


def main() -> None:
    """Rewrites the README."""
    text = README.read_text()
    README.write_text(MARKS.sub(lambda m: m[1] + block() + m[2], text))


if __name__ == "__main__":
    main()
