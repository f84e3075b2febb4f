"""The tokenizer at 256 px after the authors' published configuration (official `vqgan_config.py`).

    torchrun --nproc_per_node=8 -m train --config=train/configs/tokenizer256.py --output=runs/tokenizer256 \\
        --config.data.images=imagenet/train --config.perceptual_weights=resnet50.pth

Cost: not measured. 1,000,000 steps of 256 images; the tokenizer's part alone, 315 GFLOP an image forward
and three times that with the backward pass, is 242 EFLOP: 431 A100-hours at half of the peak rate (312
TFLOP/s).
Expected: Google's own tokenizer has a reconstruction FID of 2.28, as its README says; not repeated here.

The authors published networks, losses and their weights, not the trainer; `train/autoencoding.py` says how
the parts are put together. Use 16 GPUs or more, or a smaller batch.
"""

import ml_collections

from train.configs import tokenizer_defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings: the defaults are the authors'."""
    return tokenizer_defaults.get_config()
