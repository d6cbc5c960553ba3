"""CIFAR-100 at a quarter of its pixels with a small transformer, for a CPU.

    python -m benchmarks.train --config cifar100_16x16_vit --optimizer nlcg_muon \
        --learning-rate 0.02

`cifar100_16x16_resnet8` with another network, 4 epochs at batch 2048, 97 steps:
layer normalisation in place of batch normalisation, and no convolution. Expect the
accuracy and the time of the rows in
benchmarks/results/sweep_cifar100_16x16_vit/final/results.jsonl.
"""

import dataclasses

from benchmarks.config import Config
from benchmarks.configs import cifar100_16x16_resnet8


def get_config() -> Config:
    """Returns the config."""
    return dataclasses.replace(cifar100_16x16_resnet8.get_config(), model="vit")
