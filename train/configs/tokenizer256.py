"""The tokenizer at 256 px after the authors' published configuration (official `vqgan_config.py`).

    torchrun --nproc_per_node=8 --no-python maskgit-train --config=tokenizer256 --output=runs/tokenizer256 \\
        --config.data.images=imagenet/train --config.perceptual_weights=resnet50.pth

Cost: 1,000,000 steps of 256 images, each 1,311 GFLOP (counted, not measured), are 336 EFLOP: 598
A100-hours at half of the peak rate (312 TFLOP/s),
modelled. Activations take about 1.5 GB an image (counted as
well): 8 GPUs of 80 GB, or 16 of 40 GB; on fewer, a smaller batch.
Expected: Google's own tokenizer has a reconstruction FID of 2.28, as its README says; not repeated here.

The authors published networks, losses and their weights, not the trainer; `train/tasks/autoencoding.py`
says how the parts are put together.
"""

import ml_collections

from train.configs import tokenizer_defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings: the defaults are the authors'."""
    return tokenizer_defaults.get_config()
