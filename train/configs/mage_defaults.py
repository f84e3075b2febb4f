"""Every setting of a training run of MAGE: those of `defaults`, and what its network and masks have more."""

import ml_collections

from train.configs import defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the defaults, ViT-B masked as its authors do: the common ground of recipes, not a recipe."""
    config = defaults.get_config()
    config.update(
        task="mage",
        model="mage",
        num_class=0,  # images without classes; above 0 as RCG's model (LTH14/rcg)
        mask_scheduling_method="truncnorm:0.55",  # the share of masked tokens, from 0.5 to 1
        min_masking_rate=0.5,  # this share, all masked, the encoder does not see
        samples_per_mask_ratio=64,  # the authors' batch on a GPU
        label_drop_rate=0.0,
        label_smoothing=0.1,
        polyak_decay=0.0,
    )
    # The encoder is `transformer`; the decoder's dropout and its ratio of MLP to width are the encoder's.
    config.transformer.update(num_layers=12, num_heads=12)
    config.decoder = {"num_layers": 8, "num_embeds": 768, "num_heads": 16}
    config.optimizer.update(
        beta2=0.95,
        weight_decay=0.05,
        decay="matrices+embeddings",
        clip_norm=3.0,
        lr_schedule="cosine",
    )
    config.sampling = {"sampler": "mage", "steps": 20, "choice_temperature": 6.0}
    return config
