"""Values shared by every official configuration (official `configs/base_config.py`)."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the shared defaults, field names and values as official."""
    return ml_collections.ConfigDict(
        {
            "seed": 42,
            "image_size": 256,  # pixels
            "batch_size": 256,
            "eval_batch_size": 64,
            "dtype": "float32",
            "dataset": "imagenet2012",
            "save_train_iter": False,
            "experiment": "",
            "polyak_decay": 0.999,
            "shuffle_buffer_size": 1000,
            "train_shuffle": True,
            "eval_pad_last_batch": False,
            "batch_norm_group_size": -1,
            "pretrained_image_model": False,
            "eval_num": 30_000,
            "eval_avg_num": 1,
            "eval_exact_match": True,
            "eval_is_splits": 1,
            "num_train_steps": 1_000_000,
            "eval_every_steps": 100,
            "eval_random_show": True,
            "eval_show_num": 16,
            "checkpoint_every_steps": 10_000,
            "optimizer": {
                "type": "adam",
                "lr": 1e-4,
                "beta1": 0.0,
                "beta2": 0.999,
                "lr_schedule": "constant",
                "lr_max": 1e-4,
                "lr_min": 0.0,
                "lr_warmup_steps": 2_000,
                "lr_decay_steps": 98_000,
            },
        }
    )
