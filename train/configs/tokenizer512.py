"""The tokenizer at 512 px: the configuration of 256 px on larger images.

    torchrun --nproc_per_node=8 -m train --config=train/configs/tokenizer512.py --output=runs/tokenizer512 \\
        --config.data.images=imagenet/train --config.perceptual_weights=resnet50.pth

Cost: not measured. Four times the work an image of `tokenizer256.py`: 1,722 A100-hours for as many steps.
Expected: Google's own 512 px tokenizer, another file than the 256 px one but of the same network, has a
reconstruction FID of 1.97, as its README says; not repeated here.
"""

import ml_collections

from train.configs import tokenizer256


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = tokenizer256.get_config()
    config.image_size = 512
    return config
