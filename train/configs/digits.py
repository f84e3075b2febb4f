"""Handwritten digits by class, on two CPU cores: the whole method at a size that anyone can run.

    maskgit-train --config=digits --output=transformer --config.data.tokens=tokens

Cost: two minutes on a CPU core. Part of `maskgit-demo --data=digits`.
Expected: at least 95% of generated digits are recognised as the class that was asked for.
"""

import ml_collections

from train.configs import defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = defaults.get_config()
    config.update(
        batch_size=64,
        num_train_steps=800,
        num_class=10,
        image_size=8,
        polyak_decay=0.999,
        precision="float32",
        compile=False,
        checkpoint_every_steps=200,
        eval_every_steps=400,
        eval_show_num=40,
    )
    config.data.update(crop="center", num_workers=1)
    config.transformer.update(num_layers=4, num_embeds=128, intermediate_size=512, num_heads=4)
    config.optimizer.update(lr=1e-3, warmup_steps=200, lr_schedule="cosine")
    config.sampling.update(steps=8, guidance=1.0)
    return config
