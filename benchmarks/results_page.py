"""Writes the page of results, `docs/results.md`, from the committed result files.

    python -m benchmarks.results_page

A test checks that the page is what this writes.
"""

from benchmarks import readme, results_sweeps, results_tables, sweep_pairs
from benchmarks.results_parts import (
    DOCS,
    RUN,
    command,
    from_readme,
    image,
    include,
)

PAGE = DOCS / "results.md"

INTRODUCTION = """\
# Results

Everything here is made from files in `benchmarks/results/`, each written by the
command that stands with it. Results that speak against the method are here too. What is
missing: large networks at batch sizes of many thousand images, with tuned baselines and
several seeds; of such sizes there are small networks on small images. The commands
exist, in `benchmarks/`; they need accelerators, and until they are run nothing is
claimed of that regime beyond the runs shown.

In sweeps a trial is given up if after a quarter of its steps, rounded up to a multiple
of ten and never past the middle of the run, it does no better than guessing. Until
2026-11-30 it was judged by the mean of ten losses with the L2 penalty, which only some
optimizers are tuned with, and trials that recovered were lost, the best one of
Nesterov's momentum at batch 8,192 among them. All of those were made again.
"""


def sections() -> dict[str, str]:
    """The page by heading."""
    return {
        "Photographs: conjugate directions and what they are built on": (
            from_readme(readme.photographs())
            + "\nThe deviations are over seeds of what was chosen, and leave out the "
            "luck of the trials it was chosen from. The best three of some were "
            "repeated with two further seeds on held-out images. Chosen there by one "
            "seed, by the mean over several, and all three together:\n\n"
            + sweep_pairs.choices()
            + "\nHow often is the one ahead of the other on held-out images if either "
            "has but half of its trials? Over all ways to halve them, in percent "
            "(steps are those of the tests; trials, with fewer images, take fewer):\n\n"
            + sweep_pairs.chances()
            + "\nWhat was chosen, by the mean over several seeds if there is one:\n\n"
            + sweep_pairs.settings()
        ),
        "Digits at growing batch sizes": (
            from_readme(readme.digits()) + "\n" + results_tables.demo()
        ),
        **results_sweeps.sections(),
        "The paper's protocol on CIFAR-100": (
            command(
                f"{RUN}.train --config cifar100_resnet32 --optimizer nlcg \\\n"
                "    --data-dir data --eval-statistics running"
            )
            + "\n"
            + image("cifar100_resnet32/curves.png", "Training loss and accuracy")
            + "\n"
            + results_tables.paper_protocol()
        ),
        "Settings of the Hessian diagonal": (
            command(
                f"{RUN}.curvature_ablation --reduced --seeds 0 1 2 \\\n"
                "    --out benchmarks/results/curvature_ablation_digits"
            )
            + "\nThe small network on digits at full batch; one setting changed at a "
            "time. The last column is the cost in gradients of a batch.\n\n"
            + include("curvature_ablation_digits/table.md")
        ),
        "A step without a learning rate": (
            command(f"{RUN}.curvature_digits --out benchmarks/results/curvature_digits")
            + "\n"
            + results_tables.curvature_search()
            + "\nThe same on CIFAR-100, reduced to what a CPU can do:\n\n"
            + command(
                f"{RUN}.curvature_cifar --reduced --seeds 1 2 \\\n"
                "    --out benchmarks/results/curvature_cifar_reduced"
            )
            + "\n"
            + include("curvature_cifar_reduced/table.md")
        ),
        "What an update costs": (
            command(
                f"{RUN}.step_cost --num-parameters 1000000 10000000 \\\n"
                "    --rounds 5 --times 3 \\\n"
                "    --out benchmarks/results/step_cost"
            )
            + "\nThe optimizer's own part of a step, on a CPU. A pass reads or writes "
            "as many bytes as the parameters have; the least is every argument read "
            "once and every result written once.\n\n"
            + include("step_cost/cpu.md")
            + "\nThe same read off the programs for an H100 and for a TPU, neither of "
            "which was there, so that nothing is known of the time:\n\n"
            + command(
                "python -m venv .venv-topologies\n"
                '.venv-topologies/bin/pip install -e ".[bench,topologies]"\n'
                "for target in h100 v5e:2x2; do\n"
                "    .venv-topologies/bin/python -m benchmarks.step_cost \\\n"
                "        --compile-for $target --out benchmarks/results/step_cost\n"
                "done"
            )
            + "\n"
            + include("step_cost/h100.md")
            + "\n"
            + include("step_cost/v5e.md")
        ),
        "What curvature costs": (
            command(f"{RUN}.curvature_cost --out benchmarks/results/curvature_cost")
            + "\n"
            + results_tables.curvature_cost()
        ),
        "Full-batch solvers": (
            command(f"{RUN}.solvers --out benchmarks/results/solvers")
            + "\n"
            + image("solvers/profile.png", "Share of problems solved against cost")
            + "\nTables, timings, a physics-informed network and what else was tried "
            "are in [the solver's guide](solver.md).\n"
        ),
        "Communication": (
            "What updates and whole training steps send between devices, read off "
            "programs compiled for CPUs and for TPU pods, is under "
            "[scaling](scaling.md).\n"
        ),
        "The input pipeline": (
            command(
                f"{RUN}.input_throughput --folder data/tiny-imagenet/train \\\n"
                "    --out benchmarks/results/input_throughput"
            )
            + "\n"
            + include("input_throughput/cpu.md")
        ),
    }


def page() -> str:
    """The whole page, in MyST Markdown."""
    parts = [f"## {title}\n\n{text}" for title, text in sections().items()]
    return "\n".join([INTRODUCTION, *parts])


if __name__ == "__main__":
    PAGE.write_text(page())
