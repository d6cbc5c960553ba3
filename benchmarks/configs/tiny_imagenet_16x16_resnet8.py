"""Tiny-ImageNet at a sixteenth of its pixels with ResNet-8: large batches on a CPU.

    python -m benchmarks.train --config tiny_imagenet_16x16_resnet8 \
        --optimizer nlcg_muon --learning-rate 0.05

2 epochs at batch 8,192, 24 steps, as 16 microbatches with their own batch statistics:
`cifar100_16x16_resnet8` on twice the images and classes. The published folder is
expected as data/tiny-imagenet-200. Expect the accuracy and the time of the rows in
benchmarks/results/sweep_tiny_imagenet_16x16_b8192/final/results.jsonl.
"""

import dataclasses

from benchmarks.config import Config
from benchmarks.configs import cifar100_16x16_resnet8


def get_config() -> Config:
    """Returns the config."""
    return dataclasses.replace(
        cifar100_16x16_resnet8.get_config(),
        dataset="tiny_imagenet_16x16",
        batch_size=8_192,
        num_microbatches=16,
        num_epochs=2,
    )
