"""Writes the results in the README from the committed rows.

    python -m benchmarks.readme

replaces what stands between the README's two `results` marks; a test checks that
nothing else is there.
"""

import pathlib
import re
import textwrap
from collections.abc import Sequence

import numpy as np

from benchmarks import growing_batch, report, sweep_choice, sweep_pairs

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = pathlib.Path("benchmarks/results")
DEMO = RESULTS / "demo"
CIFAR = RESULTS / "cifar100_resnet32"
LARGER_NETWORK = "transfer_cifar100_16x16_b8192_constant"
MARKS = re.compile(r"(<!-- results:begin -->\n).*(<!-- results:end -->)", re.DOTALL)


def photographs() -> str:
    """Few steps of large batches on photographs, everything tuned."""
    trials = {
        len(rows)
        for name in sweep_pairs.SWEEPS
        for rows in sweep_choice.trial_groups(ROOT / RESULTS / name).values()
    }
    *fewer, most = sorted(trials)
    (again,) = {
        len(rows)
        for folder in sweep_pairs.TUNED_FURTHER
        for rows in report.group_rows(
            report.load(ROOT / RESULTS / folder / "past/results.jsonl"), "optimizer"
        ).values()
    }
    what = f"""
        **Few steps of large batches.** CIFAR-100 and Tiny-ImageNet at 16x16 pixels,
        which a CPU can train on, with ResNet-8 and a small transformer. `nlcg` is the
        paper's optimizer; `nlcg_muon` and `nlcg_adam` are the same with Muon's
        orthogonalisation and with Adam's scaling as the preconditioner ("Muon's metric"
        and "Adam's metric" below), and `nlcg_muon_nesterov` takes Nesterov's step
        besides, as Muon does. Each stands beside the optimizer that it is compared
        with. Everything is tuned anew on every line, under learning rates that fall or,
        where it says so, stay constant after a warm-up:
        {", ".join(map(str, fewer))} or {most} trials on held-out images, the same
        number for all that are compared, chose learning rate, schedule, warm-up, weight
        decay, label smoothing and one parameter of its own for each optimizer (for
        AdamW `b2`, and with ResNet-8 at batch 8,192 in as many trials again `b1`,
        whichever did better). With constant rates at batches 2,048 and 8,192
        `nlcg_muon` and Muon had {again} further settings each, around the best. Test
        accuracy of averaged weights, with batch statistics computed anew for them, in
        percent, mean ± standard deviation over seeds, three or more; bold where one is
        ahead of what it is compared with by more than the sum of both deviations:
    """
    caption = """
        (ResNet-8 on CIFAR-100. Left: 24 steps with a constant learning rate, for the
        faint marks with one that falls; settings were chosen by several seeds on
        held-out images. Right: four epochs, rates that fall, chosen by one seed.)
    """
    of_muon = """
        `nlcg_muon` is ahead of Muon at batch 8,192: ResNet-8 on CIFAR-100 in 24, 48 and
        97 steps, ResNet-8 on Tiny-ImageNet and the transformer in 24. At a quarter of
        that batch, and at twice that batch, the two are level by this choice of
        settings with rates that fall; with constant rates `nlcg_muon` is ahead there
        too.
    """
    of_adam = """
        `nlcg_adam` is ahead of AdamW on every line with rates that fall, and on
        CIFAR-100 at batch 8,192 of LAMB and LARS too; on the one with a constant rate
        the two are level.
    """
    return f"""\
![Test accuracy against batch size]({RESULTS / growing_batch.PICTURE})

{_fill(caption)}

{_fill(what)}

{sweep_pairs.table()}
{_item(_nesterov())}
{_item(of_muon)}
{_item(_luck())}
{_item(_constant_rate())}
{_item(of_adam)}
{_item(_parts())}
"""


def _by_several_seeds(folders: Sequence[str]) -> tuple[int, str]:
    """How many trials each had, and what several seeds chose among them comes to."""
    repeated = list(sweep_pairs.repeated(folders))
    (number,) = {number for _, number, *_ in repeated}
    *leads, last = (
        f"{_percent(ours)} against {_percent(theirs)} at batch {size}"
        for (_, size, _), _, (_, ours, _), (_, theirs, _) in repeated
    )
    return number, f"{', '.join(leads)} and {last}"


def _percent(rows: Sequence[report.Row]) -> str:
    return f"{np.mean(sweep_pairs.accuracies(rows)):.1f}"


def _luck() -> str:
    """What a steadier choice among the same trials comes to."""
    number, leads = _by_several_seeds(sweep_pairs.FALLING_RATE)
    return f"""
        But which of {number} trials is best is partly luck. If instead each optimizer's
        best three are repeated with two further seeds, and the one with the highest
        mean on held-out images is taken, `nlcg_muon` against Muon reaches in 24 steps
        with rates that fall {leads}: ahead by more than the spread at the two larger
        batches.
    """


def _nesterov() -> str:
    """What Nesterov's step brings."""
    names = sweep_pairs.NESTEROV, *sweep_pairs.REPEATED
    reached = []
    for folder, num_epochs in (
        ("sweep_cifar100_16x16", 2),
        ("sweep_cifar100_16x16", 4),
        ("sweep_cifar100_16x16_b8192", 8),
    ):
        rows = sweep_choice.final_runs(ROOT / RESULTS / folder, num_epochs)
        runs = report.group_rows(rows, "optimizer")
        ahead, plain, muon = (_percent(runs[name,]) for name in names)
        reached.append(
            f"{ahead} percent in {report.num_steps(rows)} steps, where `nlcg_muon` "
            f"reaches {plain} and Muon {muon}"
        )
    *smaller, larger = reached
    return f"""
        Nesterov's step (`nesterov=True`), which Muon has and the paper's method has
        not, is what `nlcg_muon` lacks at batch 2,048: with it and rates that fall it
        reaches {", and ".join(smaller)}: ahead of `nlcg_muon` by more than the spread
        in both, and of Muon in the longer one. At batch 8,192, where `nlcg_muon` is
        ahead of Muon by itself, it changes little: {larger}. In 24 steps,
        with rates that fall at batch 2,048 and with constant ones at both, it is level
        with `nlcg_muon`, and ahead of Muon. On the other lines it has not run.
    """


def _constant_rate() -> str:
    """What a learning rate comes to that does not fall."""
    number, leads = _by_several_seeds(sweep_pairs.CONSTANT_RATE)
    runs = report.group_rows(
        report.load(ROOT / RESULTS / LARGER_NETWORK / "results.jsonl"), "optimizer"
    )
    return f"""
        With constant rates settings were chosen by several seeds throughout, and
        `nlcg_muon` is ahead of Muon at all three sizes. Both are better than with rates
        that fall at the two larger ones, by about a point or more.
        How far ahead it is depends on how well both are tuned: by {number} trials each,
        which leave wide gaps, it would be {leads}.
        The further settings, with other rates and less of the past than the search
        tried, brought Muon almost two points at batch 8,192, by twice the rate. At
        batch 16,384 only four of each were tried, with one seed; what had been chosen
        stayed the best for both on held-out images.
        On ResNet-20 what {number} trials chose at batch 8,192, the same for both,
        reaches {_percent(runs["nlcg_muon",])} against {_percent(runs["muon",])} with
        nothing tuned again.
    """


def _parts() -> str:
    """What earns the lead over Muon."""
    names = "steepest_muon", "muon", "nlcg_muon_constant", "nlcg_muon"
    sweeps = (("sweep_cifar100_16x16_b8192_constant", 4, 16),)
    runs = report.group_rows(growing_batch.by_several_seeds(sweeps, names), "optimizer")
    none, muon, constant, rule = (_percent(runs[name,]) for name in names)
    return f"""
        What earns the lead is the sum of directions in Muon's metric. In 24 steps at
        batch 8,192 with a constant rate, of sixteen trials each, the metric alone, with
        nothing of the past, reaches {none} percent; with Muon's average of gradients it
        reaches {muon}, with a constant times the last direction {constant}, with the
        rule for beta {rule}.
        The same holds with rates that fall: constant and rule are level again, and
        there the rule helps a little where there are few trials to tune with
        ([choosing](docs/choosing.md)).
    """


def _fill(text: str, first: str = "", others: str = "") -> str:
    """Breaks a paragraph into lines, whatever the length of the numbers in it."""
    return textwrap.fill(
        " ".join(text.split()),
        88,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _item(text: str) -> str:
    return _fill(text, "- ", "  ")


def digits() -> str:
    """The demo: accuracy at growing batch sizes."""
    rows = report.load(ROOT / DEMO / "results.jsonl")
    trials = len(rows[0]["trials"]["learning_rate"])
    what = f"""
        **Handwritten digits, {rows[0]["config"]["num_epochs"]:g} epochs at every batch
        size** up to the whole training set. Every optimizer runs with the best of
        {trials} learning rates, chosen on a validation set; `ml_ncg` follows the code
        of the paper's authors to the letter. At the full batch the four kinds of NLCG
        (`nlcg`, `nlcg_adam`, `nlcg_muon`, `ml_ncg`) have the four highest mean
        accuracies, though SGD's is level with the lowest of them; at batch 64
        `nlcg_muon` has the lowest of all.
    """
    return f"""\
{_fill(what)}

![Test accuracy against batch size, and the training loss]({DEMO}/demo.png)

({report.circumstances(rows)}; `make demo` repeats it.)
"""


def cifar() -> str:
    """The paper's protocol: how far training comes."""
    rows = report.load(ROOT / CIFAR / "results.jsonl")
    losses = {row["config"]["optimizer"]: f"{row['train_loss']:.2f}" for row in rows}
    (rate,) = {row["learning_rate"] for row in rows}
    what = f"""
        **The paper's own experiment**, ResNet-32 on CIFAR-100 at batch
        {rows[0]["config"]["batch_size"]:,} with the paper's schedule and its learning
        rate of {rate:g} for all, nothing tuned, has run once, on a GPU. After
        {rows[0]["num_steps"]} steps the training loss is {losses["nlcg"]} with `nlcg`
        and {losses["ml_ncg"]} with the authors' code as it runs, {losses["momentum"]}
        with momentum and {losses["sgd"]} with SGD. The test accuracies of those runs
        say little: they are of running statistics of batch norm, which lag behind the
        weights. Against baselines tuned for networks and batches of this size nothing
        has been measured yet.
    """
    return f"""\
{_fill(what)}

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
