"""The sections of the page of results that are about sweeps."""

from benchmarks import readme, report, sweep_pairs, sweep_report
from benchmarks.results_parts import FOLDER, RUN, command, download, image, include

# What was tried where choices were tuned further.
FURTHER = {
    "sweep_cifar100_16x16_constant": "--num-epochs 1",
    "sweep_cifar100_16x16_b8192_constant": "--num-epochs 4",
    "sweep_cifar100_16x16_b16384_constant": (
        "--num-epochs 8 --shares 0.65 0.8 --factors 2"
    ),
}


def sweep(folder: str) -> str:
    """Test accuracies of a sweep by optimizer and number of steps."""
    return sweep_report.by_steps(FOLDER / folder)


def tuned(folder: str) -> str:
    """Test accuracies of a sweep, what they are, and the whole table."""
    return (
        "\nTest accuracy in percent, mean ± standard deviation over seeds, of the best "
        "trial, behind the @ its learning rate. Schedule, warm-up, weight decay and "
        "one parameter of each optimizer's own were tuned too (of AdamW the second "
        "decay, in `adamw_b1` the first): "
        f"{download(f'{folder}/table.md', 'the whole table')}.\n\n{sweep(folder)}"
    )


def fewer_trials(folder: str) -> str:
    """What the optimizers of a sweep come to with smaller budgets."""
    return (
        "\nWith fewer trials the best of them is worse. The mean of its accuracy over "
        "all choices of so many of the trials, on held-out images, in percent (trials, "
        "with fewer images to train on than tests, take fewer steps):\n\n"
        + image(f"{folder}/budget.png", "Accuracy against the number of trials")
        + "\n"
        + include(f"{folder}/budget.md")
    )


def several(folder: str) -> str:
    """What the best few trials of a sweep come to."""
    return (
        "\nWhich trial is the best on held-out images is luck in part. The best three "
        "were repeated there with two further seeds, and tested where it says so. "
        "In percent, in brackets what they have on held-out images, and bold the one "
        "with the highest mean there:\n\n"
        + sweep_report.best_trials(FOLDER / folder, sweep_pairs.SHORTLISTED)
    )


def _study(folder: str) -> str:
    """The commands that tune further what a sweep chose."""
    study = (
        f"{RUN}.past_sensitivity benchmarks/results/{folder} \\\n"
        f"    {FURTHER[folder]} \\\n"
        "    --optimizers nlcg_muon muon --seeds 4 --data-dir data"
    )
    if folder not in sweep_pairs.TUNED_FURTHER:
        return study
    again = f"{RUN}.choose_again benchmarks/results/{folder}/past"
    return f"{study}\n{again} \\\n    --data-dir data"


def _past(folder: str) -> str:
    rows = report.load(FOLDER / folder / "past" / "results.jsonl")
    return (
        f"\nBatch {rows[0]['config']['batch_size']:,}:\n\n"
        + image(f"{folder}/past/accuracy.png", "Accuracy by the past and the rate")
        + "\n"
        + include(f"{folder}/past/table.md")
    )


def sections() -> dict[str, str]:
    """Sweeps by heading."""
    return {
        "Digits, sixteen trials for every optimizer": (
            command(
                f"{RUN}.sweep --config digits --batch-sizes 1137 \\\n"
                "    --num-epochs 10 30 100 --num-validation 300 --num-trials 16 \\\n"
                "    --seeds 1 2 3 4 5 --out benchmarks/results/sweep_digits \\\n"
                "    --optimizers nlcg nlcg_online nlcg_pr nlcg_hutchinson nlcg_gnb "
                "nlcg_adam \\\n        nlcg_muon sgd momentum nesterov rmsprop adamw "
                "lars lamb muon schedule_free"
            )
            + "\nFew steps: a batch is four fifths of the training images, and in the "
            "trials, which hold images out, all of them. Test accuracy in percent, "
            "mean ± standard deviation over seeds, of the best trial, behind the @ its "
            "learning rate. "
            "Schedule, warm-up, weight decay and each optimizer's own settings were "
            f"tuned too: {download('sweep_digits/table.md', 'the whole table')}.\n\n"
            + image("sweep_digits/accuracy.png", "Accuracy against the number of steps")
            + f"\n{sweep('sweep_digits')}"
            + "\nThe shortest of these runs that reach an accuracy on average, and "
            "what one of them takes:\n\n"
            + include("sweep_digits/targets.md")
            + fewer_trials("sweep_digits")
        ),
        "Digits, what each part of NLCG earns": (
            command(
                f"{RUN}.sweep --config digits --batch-sizes 1137 \\\n"
                "    --num-epochs 10 30 100 --num-validation 300 --num-trials 32 \\\n"
                "    --seeds 1 2 3 4 5 6 7 8 \\\n"
                "    --out benchmarks/results/sweep_digits_parts \\\n"
                "    --optimizers nlcg nlcg_fr nlcg_fr_step nlcg_fr_bfgs "
                "nlcg_no_rollback \\\n        nlcg_constant nlcg_adam nlcg_adam_fr "
                "nlcg_adam_constant sgd_step sgd"
            )
            + "\nAs above, with parts taken away or changed, each tuned anew in "
            "thirty-two trials.\n\n"
            "- `nlcg_fr`: the direction alone; `nlcg_fr_step`: with the line search; "
            "`nlcg_fr_bfgs`: with the preconditioner.\n"
            "- `nlcg_no_rollback`: nothing is taken back. `nlcg_constant`: a constant "
            "in place of the rule for beta.\n"
            "- `nlcg_adam`: Adam's scaling as the preconditioner; `nlcg_adam_fr`: "
            "without a search; `nlcg_adam_constant`: with a constant beta.\n"
            "- `sgd_step`: SGD with the line search.\n\n"
            + image(
                "sweep_digits_parts/accuracy.png", "Accuracy of parts against steps"
            )
            + f"\n{sweep('sweep_digits_parts')}"
        ),
        "CIFAR-100 at 16x16 pixels, large batches": (
            command(
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --num-epochs 2 4 --num-trials 12 \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16 \\\n"
                "    --optimizers nlcg nlcg_adam nlcg_muon sgd nesterov adamw lars "
                "muon\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --num-epochs 1 --num-trials 48 --num-tested 3 \\\n"
                "    --repeat-seeds 4 5 \\\n"
                "    --optimizers nlcg_muon muon nlcg_muon_nesterov \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --num-epochs 2 --num-trials 24 \\\n"
                "    --optimizers nlcg_muon muon nlcg_muon_constant nlcg_muon_pr \\\n"
                "        nlcg_muon_nesterov "
                "--out benchmarks/results/sweep_cifar100_16x16\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --num-epochs 4 --num-trials 12 --num-tested 3 "
                "--repeat-seeds 4 5 \\\n"
                "    --optimizers nlcg_muon_nesterov muon \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16"
            )
            + tuned("sweep_cifar100_16x16")
            + "\nBatch 2,048, of which four microbatches have batch statistics of "
            "their own. Twelve trials each; for what is in Muon's metric twice as many "
            "in 48 steps and four times as many in 24.\n"
            + several("sweep_cifar100_16x16")
            + fewer_trials("sweep_cifar100_16x16")
            + "\nThese means depend on where the ranges of the search lie. The "
            "following does not: the learning rate of the best trial multiplied by "
            "powers of the square root of ten, all else as chosen. The last columns "
            "say over how many decades the accuracy stays above a share of its best "
            "(+: the scan ends there):\n\n"
            + command(
                f"{RUN}.rate_sensitivity benchmarks/results/sweep_cifar100_16x16 \\\n"
                "    --num-epochs 2 --data-dir data --optimizers nlcg nlcg_adam "
                "nlcg_muon \\\n        sgd nesterov adamw muon"
            )
            + "\n"
            + image("sweep_cifar100_16x16/rates/accuracy.png", "Wrong learning rates")
            + "\n"
            + include("sweep_cifar100_16x16/rates/table.md")
        ),
        "CIFAR-100 at 16x16 pixels, the same epochs at four times the batch": (
            command(
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --batch-sizes 8192 --num-microbatches 16 --num-trials 24 \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_b8192 \\\n"
                "    --optimizers nlcg_muon nlcg_muon_constant steepest_muon muon "
                "\\\n        nlcg_adam adamw adamw_b1 lamb lars nlcg nesterov\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --batch-sizes 8192 --num-microbatches 16 --num-trials 48 \\\n"
                "    --num-tested 3 --repeat-seeds 4 5 \\\n"
                "    --optimizers nlcg_muon muon \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_b8192\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --batch-sizes 8192 --num-microbatches 16 --num-trials 48 \\\n"
                "    --optimizers nlcg_muon_constant steepest_muon \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_b8192\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --batch-sizes 8192 --num-microbatches 16 --num-trials 24 \\\n"
                "    --num-epochs 8 --optimizers nlcg_muon muon nlcg_muon_nesterov \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_b8192\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --batch-sizes 8192 --num-microbatches 16 --num-trials 12 \\\n"
                "    --num-epochs 16 --optimizers nlcg_muon muon \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_b8192"
            )
            + tuned("sweep_cifar100_16x16_b8192")
            + "\nFour epochs are 97 steps at batch 2,048, above, and 24 here; 48 and "
            "97 steps are two and four epochs there, eight and sixteen here. Batch "
            "statistics are of 512 images in both. Twenty-four trials each, twelve in "
            "the longest runs, and in the shortest twice as many for what is in Muon's "
            "metric. Some of the runs had to share their cores: their "
            "seconds say little.\n"
            + several("sweep_cifar100_16x16_b8192")
            + "\nWhat depends on what? The shortest runs as they were chosen, with one "
            "choice changed at a time and two seeds of their own, on held-out images, "
            "in percent:\n\n"
            + command(
                f"{RUN}.levers benchmarks/results/sweep_cifar100_16x16_b8192 \\\n"
                "    --num-epochs 4 --data-dir data --optimizers nlcg_muon"
            )
            + "\n"
            + image(
                "sweep_cifar100_16x16_b8192/levers/levers.png",
                "Accuracy with one choice changed",
            )
            + "\n"
            + include("sweep_cifar100_16x16_b8192/levers/table.md")
            + fewer_trials("sweep_cifar100_16x16_b8192")
        ),
        "CIFAR-100 at 16x16 pixels, batch 16,384": (
            command(
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --batch-sizes 16384 --num-microbatches 32 --num-trials 48 \\\n"
                "    --num-epochs 8 --num-tested 3 --repeat-seeds 4 5 \\\n"
                "    --optimizers nlcg_muon muon \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_b16384"
            )
            + tuned("sweep_cifar100_16x16_b16384")
            + "\nA third of the training set in every step: as many steps as in the "
            "shortest runs above, in twice the epochs. Forty-eight trials each.\n"
            + several("sweep_cifar100_16x16_b16384")
            + fewer_trials("sweep_cifar100_16x16_b16384")
        ),
        "CIFAR-100 at 16x16 pixels, a constant learning rate": (
            command(
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --num-epochs 1 --num-trials 16 --schedules constant \\\n"
                "    --num-tested 3 --repeat-seeds 4 5 \\\n"
                "    --optimizers nlcg_muon_nesterov nlcg_muon muon nlcg_adam "
                "adamw \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_constant\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --batch-sizes 8192 --num-microbatches 16 --num-trials 16 \\\n"
                "    --schedules constant --num-tested 3 --repeat-seeds 4 5 \\\n"
                "    --optimizers nlcg_muon_nesterov nlcg_muon muon nlcg_muon_constant "
                "\\\n        steepest_muon "
                "--out benchmarks/results/sweep_cifar100_16x16_b8192_constant\n"
                f"{RUN}.sweep --config cifar100_16x16_resnet8 --data-dir data \\\n"
                "    --batch-sizes 16384 --num-microbatches 32 --num-epochs 8 \\\n"
                "    --num-trials 16 --schedules constant --num-tested 3 \\\n"
                "    --repeat-seeds 4 5 --optimizers nlcg_muon muon \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_b16384_constant"
            )
            + "\nThe sweeps above try three schedules that fall. These are the first "
            "sixteen settings of each optimizer's search again, with a warm-up and "
            "then a constant rate, in 24 steps of each batch size; chosen and repeated "
            "as above, in percent.\n"
            + "".join(
                f"\n{download(f'{folder}/table.md', 'The settings')}:\n\n"
                + sweep_report.best_trials(FOLDER / folder, sweep_pairs.SHORTLISTED)
                for folder in sweep_pairs.CONSTANT_RATE
            )
            + fewer_trials("sweep_cifar100_16x16_b8192_constant")
            + "\nIs it the search that favours one of the two? All else as chosen, "
            "also with less of the past than the search tried, at several rates, with "
            "a further seed, on held-out images, in percent:\n\n"
            + command("\n".join(map(_study, FURTHER)))
            + "".join(map(_past, FURTHER))
            + "\nAt batches 2,048 and 8,192 the best three of each were repeated with "
            "further seeds; the one with the highest mean then trained on the whole "
            "training set, and was tested:\n\n"
            + "\n".join(
                include(f"{folder}/past/choice.md")
                for folder in sweep_pairs.TUNED_FURTHER
            )
        ),
        "CIFAR-100 at 16x16 pixels, a larger network": (
            command(
                f"{RUN}.transfer \\\n"
                "    benchmarks/results/sweep_cifar100_16x16_b8192_constant \\\n"
                "    --model resnet20 --data-dir data --optimizers nlcg_muon muon \\\n"
                f"    --out benchmarks/results/{readme.LARGER_NETWORK}"
            )
            + "\nWhat the sweep with a constant rate chose at batch 8,192, with "
            "ResNet-20 in place of ResNet-8, the same seeds, and nothing tuned again. "
            "In so few steps the larger network is the worse one with either "
            "optimizer. Test accuracy in percent:\n\n"
            + include(f"{readme.LARGER_NETWORK}/table.md")
        ),
        "Tiny-ImageNet at 16x16 pixels": (
            command(
                f"{RUN}.sweep --config tiny_imagenet_16x16_resnet8 --data-dir data \\\n"
                "    --num-trials 24 --optimizers nlcg_muon muon nlcg_muon_constant "
                "\\\n        nlcg_adam adamw adamw_b1 \\\n"
                "    --out benchmarks/results/sweep_tiny_imagenet_16x16_b8192"
            )
            + tuned("sweep_tiny_imagenet_16x16_b8192")
            + "\nTwice the images with twice the classes: 24 steps are two epochs. The "
            "published validation set is the test set here.\n"
            + fewer_trials("sweep_tiny_imagenet_16x16_b8192")
        ),
        "CIFAR-100 at 16x16 pixels, a transformer": (
            command(
                f"{RUN}.sweep --config cifar100_16x16_vit --data-dir data \\\n"
                "    --num-trials 12 --out benchmarks/results/sweep_cifar100_16x16_vit "
                "\\\n    --optimizers nlcg_adam nlcg_muon adamw muon"
            )
            + "\nAs above with a small vision transformer, which has neither "
            "convolutions nor batch normalisation: "
            f"{download('sweep_cifar100_16x16_vit/table.md', 'the whole table')}.\n\n"
            + sweep("sweep_cifar100_16x16_vit")
            + fewer_trials("sweep_cifar100_16x16_vit")
            + "\nThe same epochs at four times the batch:\n\n"
            + command(
                f"{RUN}.sweep --config cifar100_16x16_vit --data-dir data \\\n"
                "    --batch-sizes 8192 --num-microbatches 16 --num-trials 24 \\\n"
                "    --seeds 1 2 3 4 5 --optimizers nlcg_muon muon \\\n"
                "    --out benchmarks/results/sweep_cifar100_16x16_vit_b8192"
            )
            + "\n"
            + sweep("sweep_cifar100_16x16_vit_b8192")
            + fewer_trials("sweep_cifar100_16x16_vit_b8192")
        ),
        "Digits, a residual network with batch norm": (
            command(
                f"{RUN}.sweep --config digits --model resnet8 --batch-sizes 1137 \\\n"
                "    --num-epochs 10 --num-validation 300 --num-trials 16 \\\n"
                "    --seeds 1 2 3 4 5 --out benchmarks/results/sweep_digits_resnet8 "
                "\\\n    --optimizers nlcg nlcg_fr nlcg_constant nlcg_adam "
                "nlcg_adam_constant \\\n        nlcg_muon sgd nesterov adamw lars "
                "muon schedule_free"
            )
            + "\nTuned and tested as above; in 37 steps (`--num-epochs 30`) only some "
            "of them: "
            f"{download('sweep_digits_resnet8/table.md', 'the whole table')}.\n\n"
            + image("sweep_digits_resnet8/accuracy.png", "Accuracy against steps")
            + f"\n{sweep('sweep_digits_resnet8')}"
            + fewer_trials("sweep_digits_resnet8")
        ),
    }
