r"""Tiny-ImageNet (200 classes, 64x64) with ResNet-50: ImageNet's protocol on one GPU.

    python -m benchmarks.train --config tiny_imagenet_resnet50 --optimizer nlcg \
        --data-dir data/tiny-imagenet

90 epochs at batch 5,120 are 1,757 steps, about as many as ImageNet's 90 at 65,536. The
mini-batch is 20 microbatches with batch statistics of their own: 1, 2, 4, 5, 10 or 20
devices, each with memory for the activations of 256 images of 64x64. Images are
expected as data/tiny-imagenet/{train,val}/<class>/*.JPEG. The whole run has not been
made yet, so there is no accuracy nor time to expect.

On a CPU, a few steps at a small batch show that everything is in place. Expect the time
of the row in benchmarks/results/tiny_imagenet_cpu/results.jsonl.

    python -m benchmarks.train --config tiny_imagenet_resnet50 --optimizer nlcg \
        --data-dir data/tiny-imagenet --batch-size 32 --num-microbatches 1 \
        --num-devices 1 --num-workers 2 --num-validation 200 --num-epochs 0.002 \
        --schedule constant
"""

import dataclasses

from benchmarks.config import Config
from benchmarks.configs import imagenet_resnet50


def get_config() -> Config:
    """Returns the config: ImageNet's, for smaller images and fewer of them."""
    return dataclasses.replace(
        imagenet_resnet50.get_config(),
        image_size=64,
        batch_size=5_120,
        num_microbatches=20,
    )
