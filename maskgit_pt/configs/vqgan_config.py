"""The tokenizer's configuration (official `configs/vqgan_config.py`)."""

import ml_collections

from maskgit_pt.configs import base_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the published tokenizer configuration: f16, 1024 codes of width 256."""
    config = base_config.get_config()
    config.update(
        model_class="vqgan",
        d_step_per_g_step=1,
        image_size=256,
        batch_size=256,
        eval_batch_size=128,
        eval_every_steps=10_000,
        num_train_steps=1_000_000,
        pretrained_image_model=True,
        perceptual_loss_weight=0.1,
        perceptual_loss_on_logit=False,
        eval_exact_match=True,
        eval_num=50_000,
    )
    with config.ignore_type():
        config.optimizer.lr = None  # two rates instead, below
    config.optimizer.update(beta1=0.0, beta2=0.99, g_lr=1e-4, d_lr=1e-4)
    config.vqgan = {
        "loss_type": "non-saturating",
        "g_adversarial_loss_weight": 0.1,
        "gradient_penalty": "r1",
        "grad_penalty_cost": 10.0,
    }
    config.vqvae = {
        "quantizer": "vq",  # or "gumbel"
        "codebook_size": 1024,
        "entropy_loss_ratio": 0.1,
        "entropy_temperature": 0.01,
        "entropy_loss_type": "softmax",
        "commitment_cost": 0.25,
        "filters": 128,
        "num_res_blocks": 2,
        "channel_multipliers": [1, 1, 2, 2, 4],
        "embedding_dim": 256,
        "conv_downsample": False,
        "activation_fn": "swish",
        "norm_type": "GN",
    }
    config.discriminator = {"channel_multiplier": 1, "blur_resample": True}
    config.tau_anneal = {
        "tau_max": 1.0,
        "tau_min": 0.6,
        "tau_warmup_steps": 0,
        "tau_decay_steps": 100_000,
    }
    return config
