"""Writes the results in the README from the committed rows.

    python -m benchmarks.readme

replaces what stands between the README's two `results` marks; a test checks that
nothing else is there.
"""

import pathlib
import re

from benchmarks import report, sweep_report

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = pathlib.Path("benchmarks/results")
MARKS = re.compile(r"(<!-- results:begin -->\n).*(<!-- results:end -->)", re.DOTALL)


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
a validation set. `nlcg` is the paper's, `ml_ncg` its authors' code to the letter, and
`nlcg_adam` and `nlcg_muon` are conjugate directions around Adam's scaling and around
Muon's orthogonalisation. At the full batch these four have the four highest means.

![Test accuracy against batch size, and the training loss]({folder}/demo.png)

{report.batch_size_table(rows)}

({report.circumstances(rows)}; `make demo` repeats it.)
"""


def small_photographs() -> str:
    """Few steps of large batches on photographs, everything tuned."""
    folder = RESULTS / "sweep_cifar100_16x16"
    rows, larger = (
        report.load(ROOT / name / "final" / "results.jsonl")
        for name in (folder, f"{folder}_b8192")
    )
    config = rows[0]["config"]
    epochs = max(row["config"]["num_epochs"] for row in rows)
    batch_size = larger[0]["config"]["batch_size"]
    # What is said below of the numbers of steps.
    assert larger[0]["config"]["num_epochs"] == epochs
    assert batch_size == 4 * config["batch_size"]
    return f"""\
**CIFAR-100 at 16x16 pixels, ResNet-8, batch {config["batch_size"]:,}**, few steps:
test accuracy in percent, mean ± standard deviation over seeds. Learning rate (behind
the @), schedule, warm-up, weight decay, label smoothing and one parameter of its own
are tuned for every optimizer on held-out images. Tuned, `nlcg_adam` is ahead of AdamW
and `nlcg_muon` level with Muon. With a few trials instead of twelve they are ahead of
both, as the second plot has it, on held-out images; a part of that is
[where the searched ranges lie](docs/choosing.md#learning-rate).

![Accuracy against the number of steps]({folder}/accuracy.png)

![Accuracy of the best against the number of trials]({folder}/budget.png)

{sweep_report.by_steps(ROOT / folder)}
Batch {batch_size:,}, the same {epochs:g} epochs in a quarter of the steps: there
conjugate directions around Muon's metric are ahead of Muon, and those around Adam's
scaling ahead of AdamW, LAMB and LARS, by more than the spread of seeds.

{sweep_report.by_steps(ROOT / f"{folder}_b8192")}"""


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
    return f"{digits()}\n{small_photographs()}\n{cifar()}"


def main() -> None:
    """Rewrites the README."""
    text = README.read_text()
    README.write_text(MARKS.sub(lambda m: m[1] + block() + m[2], text))


if __name__ == "__main__":
    main()
