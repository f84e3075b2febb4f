"""The 2023 reproduction at 512 px: fine-tuning of the 256 px model (Besnier & Chen, arXiv 2310.14400).

    torchrun --nproc_per_node=8 --no-python maskgit-train --config=besnier512 --output=runs/besnier512 \\
        --config.data.tokens=tokens512 --config.tokenizer=vqgan_f16_1024 --config.init_from=besnier256

Cost: 750,000 steps of 128 images are 124 EFLOP: 221 A100-hours at half of the peak rate (312 TFLOP/s),
modelled.
The report's own fine-tuning took 384.
Expected: FID 7.26, IS 223.0 with the report's sampler (15 steps, guidance 2.8), as published; not repeated
here.

`init_from` is an exported run of `besnier256.py`, or the published weights. Position embeddings grow from
257 to 1025, interpolated over the image grid.
"""

import ml_collections

from train.configs import besnier256


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = besnier256.get_config()
    config.update(image_size=512, batch_size=128, num_train_steps=750_000)
    config.sampling.update(steps=15, choice_temperature=7.0, guidance=2.8)
    return config
