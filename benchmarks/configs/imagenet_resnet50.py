r"""ImageNet with ResNet-50: 90 epochs at a very large mini-batch.

    python -m benchmarks.train --config imagenet_resnet50 --optimizer nlcg \
        --data-dir /data/imagenet --checkpoint-dir /data/checkpoints/nlcg

Batch 65,536, which is 1,759 steps, as 256 microbatches with batch statistics of their
own: 1 to 256 devices, each with memory for the activations of 256 images of 224x224.
On several hosts add what docs/distributed.md says. At batch 8,192, which is 14,075
steps, on 1 to 32 devices:

    python -m benchmarks.train --config imagenet_resnet50 --optimizer nlcg \
        --batch-size 8192 --num-microbatches 32 \
        --data-dir /data/imagenet --checkpoint-dir /data/checkpoints/nlcg-8192

ImageNet-2012 is expected as /data/imagenet/{train,val}/<class>/*.JPEG. It has not been
run yet, so there is no accuracy nor time to expect; for comparison, MLPerf's LARS needs
84.5 epochs for 75.9 % at batch 65,536. The learning rate, unless given, is .1 for every
128 images of the mini-batch; choose it with `--num-validation 50000`.
"""

from benchmarks.config import Config


def get_config() -> Config:
    """Returns the config."""
    return Config(
        dataset="image_folder",
        model="resnet50",
        image_size=224,
        batch_size=65_536,
        num_microbatches=256,
        num_workers=16,
        num_epochs=90,
        schedule="linear",
        l2=1e-4,
        label_smoothing=0.1,
        checkpoint_every=100,
    )
