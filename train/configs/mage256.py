"""MAGE, ViT-B, at 256 px (Li et al. 2023, arXiv 2211.09117; LTH14/mage): images without classes.

    torchrun --nproc_per_node=8 --no-python maskgit-train --config=mage256 --output=runs/mage256 \\
        --config.data.tokens=tokens256 --config.tokenizer=mage_tokenizer

Cost: 499,200 steps of 4096 images are 332 EFLOP: 591 A100-hours at half of the peak rate (312 TFLOP/s),
modelled.
Expected: FID 11.1, IS 81.2 with the authors' sampler (20 steps, temperature 6), as published; a loss near
5.76, as the author tells; not repeated here.

Settings of the authors' repository: batch 4096, 1600 epochs, of which the rate rises for 40; the rate is
1.5e-4 for each 256 images. Differences:
- Crops: theirs are new in every epoch and keep at least 20% of the area; `maskgit-tokenize
  --crop=random_resized+flip` stores as many as are asked for, of at least 8%.
- Precision: they compute in float16 with scaled losses, here it is bfloat16.
- A mask ratio is theirs of the 64 samples of a GPU, here of 64 samples in turn, whatever the number of GPUs.

The tokenizer, Google's or the one that its authors trained anew (`vqgan_jax_strongaug.ckpt`), becomes part of
the model, as in their files.
"""

import ml_collections

from train.configs import mage_defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = mage_defaults.get_config()
    config.update(batch_size=4096, num_train_steps=499_200)
    config.optimizer.update(lr=2.4e-3, warmup_steps=12_480)
    return config
