"""CIFAR-100 with ResNet-32: the protocol of the NLCG paper's authors.

    python -m benchmarks.train --config cifar100_resnet32 --optimizer nlcg

200 epochs at batch 16384 as 4 microbatches of 4096, learning rate 12.8.
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
