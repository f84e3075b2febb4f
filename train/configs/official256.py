"""The authors' published configuration at 256 px (Chang et al. 2022, `maskgit_class_cond_config.py`).

    torchrun --nproc_per_node=8 --no-python maskgit-train --config=official256 --output=runs/official256 \\
        --config.data.tokens=tokens256 --config.tokenizer=tokenizer256

Cost: 2,000,000 steps of 256 images are 143 EFLOP: 254 A100-hours at half of the peak rate (312 TFLOP/s),
modelled.
Expected: FID 6.06 after 8 steps of the official sampler without guidance, as published; not repeated here.

What they published is the configuration, not the trainer. `min_masking_rate` is read as the least share of
tokens that is masked; the learning rate is constant after its warm-up, as the configuration names no other
schedule; nothing is said of label drops, so there are none, and guidance does not apply.
"""

import ml_collections

from maskgit_pt.configs import maskgit_class_cond_config
from train.configs import defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings; values come from the official configuration."""
    official = maskgit_class_cond_config.get_config()
    config = defaults.get_config()
    same = ("seed", "batch_size", "num_train_steps", "num_class", "image_size", "label_smoothing",
            "mask_scheduling_method", "min_masking_rate", "compute_loss_for_all", "polyak_decay")  # fmt: skip
    config.update({name: official[name] for name in same})
    config.label_drop_rate = 0.0
    for name in ("num_layers", "num_embeds", "intermediate_size", "num_heads", "dropout_rate"):
        config.transformer[name] = official.transformer[name]
    for name in ("lr", "beta1", "beta2", "warmup_steps", "weight_decay"):
        config.optimizer[name] = official.optimizer[name]
    config.sampling.choice_temperature = official.sample_choice_temperature
    return config
