"""The tokenizer at 512 px: the configuration of 256 px on larger images.

    torchrun --nproc_per_node=8 --no-python maskgit-train --config=tokenizer512 --output=runs/tokenizer512 \\
        --config.data.images=imagenet/train --config.perceptual_weights=resnet50.pth

Cost: 1,000,000 steps of 256 images, each 4,233 GFLOP (counted, not measured), are 1,084 EFLOP: 1,930
A100-hours at half of the peak rate, modelled. Activations take about 5 GB an image: 32 GPUs of 80 GB,
or a smaller batch.
Expected: Google's own 512 px tokenizer, another file than the 256 px one but of the same network, has a
reconstruction FID of 1.97, as its README says; not repeated here.

The paper trains one tokenizer on crops of 256 px and uses it at 512 px as well; how the published one for
512 px was trained is not known.
"""

import ml_collections

from train.configs import tokenizer256


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = tokenizer256.get_config()
    config.image_size = 512
    return config
