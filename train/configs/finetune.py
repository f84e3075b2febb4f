"""Your own pictures: a trained transformer learns other classes, from twenty pictures a class up.

    maskgit-train --config=finetune --output=RUN --config.data.tokens=tokens \\
        --config.tokenizer=tokenizer256 --config.init_from=maskgit256

Cost: minutes; docs/finetune.md has all commands and what was measured.
Expected: the held-out loss falls for some dozens of steps, and the run ends by itself.

The network and its sizes are those of the weights. What they bring learns at a tenth of the rate of the rows
of new classes (`optimizer.init_lr_scale`; 0 freezes it). Rows of new classes begin as the mean of all
classes. A tenth of the pictures is held out; `maskgit-export --step` takes the step that the run names at
its end.
"""

import ml_collections

from train.configs import defaults


def get_config() -> ml_collections.ConfigDict:
    """Returns the settings."""
    config = defaults.get_config()
    config.update(
        model="init_from",
        num_class=0,
        keep_classes=True,
        batch_size=64,
        num_train_steps=1000,
        mask_scheduling_method="cosine",
        polyak_decay=0.98,
        log_every_steps=10,
        checkpoint_every_steps=25,
        keep_checkpoints=5,
        eval_every_steps=25,
        early_stop_evals=4,
    )
    config.data.update(eval_share=0.1)
    config.optimizer.update(lr=1e-3, init_lr_scale=0.1, warmup_steps=10)
    return config
