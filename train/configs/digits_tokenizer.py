"""A tokenizer for handwritten digits: 8 px, 16 tokens of 256 codes.

    maskgit-train --config=train/configs/digits_tokenizer.py --output=RUN \\
        --config.data.images=images/shifted

Cost: two to three minutes on a CPU core. Part of `maskgit-demo --data=digits`.
Expected: PSNR of 22 dB or more (24 were measured) on digits it has not seen, more than half of the codes in
use.
"""

import ml_collections

from train.configs import tokenizer_defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = tokenizer_defaults.get_config()
    config.update(
        batch_size=32,
        num_train_steps=2500,
        image_size=8,
        perceptual_weights="off",
        precision="float32",
        compile=False,
        polyak_decay=0.99,
        checkpoint_every_steps=500,
        eval_every_steps=1250,
    )
    config.data.update(crop="center", num_workers=1)
    config.vqgan.g_adversarial_loss_weight = 0.0
    config.vqvae.update(
        codebook_size=256,
        embedding_dim=32,
        filters=32,
        num_res_blocks=1,
        entropy_loss_ratio=0.003,
        channel_multipliers=(1, 2),
    )
    config.optimizer.update(g_lr=2e-3, beta1=0.9, lr_schedule="cosine", warmup_steps=100)
    return config
