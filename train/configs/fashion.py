"""Photographs of clothes by class (Fashion-MNIST, Zalando), on two CPU cores: 28 px, 49 tokens.

    maskgit-train --config=fashion --output=RUN --config.data.tokens=tokens --config.tokenizer=tokenizer

Cost: about fourteen minutes on two CPU cores with bfloat16 units. Part of `maskgit-demo`.
Expected: images that one recognises, with guidance 2, noise 12 on the confidence, and 8 steps.

Unlike the official recipe it has no dropout and no label smoothing. In three passes over the images nothing
is overfitted; and of smoothed probabilities a tenth falls on codes that fit nowhere.
"""

import ml_collections

from train.configs import defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = defaults.get_config()
    config.update(
        batch_size=64,
        num_train_steps=2600,
        num_class=10,
        image_size=28,
        polyak_decay=0.999,
        compile=False,
        mask_scheduling_method="arccos",
        label_smoothing=0.0,
        checkpoint_every_steps=500,
        eval_every_steps=1300,
        eval_show_num=40,
    )
    config.data.update(crop="center", num_workers=1)
    config.transformer.update(
        num_layers=4, num_embeds=128, intermediate_size=512, num_heads=4, dropout_rate=0.0
    )
    config.optimizer.update(lr=2e-3, warmup_steps=250, lr_schedule="cosine")
    config.sampling.update(steps=8, guidance=2.0, choice_temperature=12.0)
    return config
