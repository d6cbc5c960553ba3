r"""CIFAR-100 with ResNet-32: the protocol of the NLCG paper's authors.

    python -m benchmarks.train --config cifar100_resnet32 --optimizer nlcg

200 epochs at batch 16384 as 4 microbatches of 4096 with their own batch statistics,
learning rate 12.8, on one GPU with 80 GB. Expect the accuracy and the time of the rows
in benchmarks/results/cifar100_resnet32/results.jsonl, which `python -m
benchmarks.reproduce` wrote; `python -m benchmarks.report` prints them as a table.

On a CPU, a few steps at a small batch show that everything is in place:

    python -m benchmarks.train --config cifar100_resnet32 --optimizer nlcg \
        --batch-size 128 --num-microbatches 1 --num-epochs 0.1 --schedule constant \
        --num-devices 1
"""

from benchmarks.config import Config


def get_config() -> Config:
    """Returns the config."""
    return Config(
        dataset="cifar100",
        model="resnet32",
        batch_size=16384,
        num_microbatches=4,
        num_epochs=200,
        schedule="reference",
        augment=True,
    )
