"""A tokenizer for Fashion-MNIST (Zalando): 28 px, 7 x 7 tokens of 512 codes.

    maskgit-train --config=fashion_tokenizer --output=RUN --config.data.images=images/train \\
        --config.eval_images=images/test --config.eval_features=off

Cost: about eleven minutes on a CPU core with bfloat16 units. Part of `maskgit-demo`.
Expected: PSNR of 23 dB or more on test images, more than 90% of the codes in use.
"""

import ml_collections

from train.configs import tokenizer_defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = tokenizer_defaults.get_config()
    config.update(
        batch_size=32,
        num_train_steps=3000,
        image_size=28,
        perceptual_weights="off",
        compile=False,
        polyak_decay=0.99,
        checkpoint_every_steps=500,
        eval_every_steps=1500,
    )
    config.data.update(crop="center", num_workers=1)
    config.vqgan.g_adversarial_loss_weight = 0.0
    config.vqvae.update(
        codebook_size=512,
        embedding_dim=32,
        filters=32,
        num_res_blocks=1,
        entropy_loss_ratio=0.003,
        channel_multipliers=(1, 2, 2),
    )
    config.optimizer.update(g_lr=2e-3, beta1=0.9, lr_schedule="cosine", warmup_steps=100)
    return config
