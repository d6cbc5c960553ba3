"""CIFAR-100 at a quarter of its pixels with ResNet-8: large batches on a CPU.

    python -m benchmarks.train --config cifar100_16x16_resnet8 --optimizer nlcg

4 epochs at batch 2048, 97 steps, as 4 microbatches with their own batch statistics, as
in the large-batch runs of `cifar100_resnet32`. Expect the accuracy and the time of the
rows in benchmarks/results/sweep_cifar100_16x16/final/results.jsonl.
"""

from benchmarks.config import Config


def get_config() -> Config:
    """Returns the config."""
    return Config(
        dataset="cifar100_16x16",
        model="resnet8",
        batch_size=2048,
        num_microbatches=4,
        num_devices=1,
        num_epochs=4,
        schedule="linear",
        augment=True,
    )
