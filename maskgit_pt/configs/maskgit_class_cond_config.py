"""The class-conditional transformer's configuration (official `maskgit_class_cond_config.py`)."""

import ml_collections

from maskgit_pt.configs import base_config, vqgan_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the published class-conditional ImageNet configuration."""
    config = base_config.get_config()
    config.update(
        experiment="maskgit_class_cond",
        model_class="maskgit_class_cond",
        sequence_order="horizontal",
        num_class=1000,
        batch_size=256,
        eval_batch_size=8,
        eval_every_steps=10_000,
        checkpoint_every_steps=10_000,
        eval_show_num=16,
        image_size=256,
        num_train_steps=2_000_000,
        eval_num=50_000,
        eval_avg_num=3,
        eval_exact_match=True,
        compute_loss_for_all=False,
        label_smoothing=0.1,
        mask_scheduling_method="cosine",
        sample_choice_temperature=4.5,
        min_masking_rate=0.5,
    )
    config.optimizer.update(lr=1e-4, beta1=0.9, beta2=0.96, warmup_steps=5000, weight_decay=0.045)
    config.transformer = {
        "num_layers": 24,
        "patch_size": 16,
        "num_embeds": 768,
        "intermediate_size": 3072,
        "num_heads": 16,
        "dropout_rate": 0.1,
        "mask_token_id": -1,
        "latent_size": 16,
    }
    tokenizer = vqgan_config.get_config()
    config.vqgan = tokenizer.vqgan
    config.vqvae = tokenizer.vqvae
    return config
