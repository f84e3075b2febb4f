"""Every setting of a training run of the transformer, with its meaning; recipes change what differs.

Fields that the official configuration has keep its names (`maskgit_pt/configs/`).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the defaults: the common ground of the recipes, not a recipe."""
    return ml_collections.ConfigDict(
        {
            "task": "masked_tokens",
            "seed": 42,
            "batch_size": 256,  # images a step, over all processes
            "accumulation_steps": 1,  # a process cuts its share of the batch into so many parts
            "num_train_steps": 1_000_000,
            "num_class": 1000,  # 0: as many as the data has, and `init_from` where its classes are kept
            "image_size": 256,  # pixels
            "data": {
                "tokens": "",  # a folder of `maskgit-tokenize`; or
                "images": "",  # images, tokenized while training by `tokenizer`
                "split": "",  # of `images`, in the Kaggle layout: train or val
                "crop": "random_resized+flip",  # of `images`; see `train.data.images.crop`
                # Held out for `eval_loss`: a folder of tokens; or this share of each class in `tokens`.
                "eval_tokens": "",
                "eval_share": 0.0,
                "num_workers": 4,  # reading processes for each training process
            },
            # The tokenizer's folder, file or hub id: for pictures, and to tokenize `data.images`.
            "tokenizer": "",
            # A trained transformer to start from: a folder, a file or a hub id. Position embeddings grow to
            # this run's length; classes with a name that it knows begin as it knows them.
            "init_from": "",
            "keep_classes": False,  # True: the classes of `init_from` stay, new ones of the data follow
            # Instead of names, for each class of the data, separated by commas: an id or name of `init_from`,
            # or "new".
            "init_classes": "",
            "init_other_tokenizer": False,  # True: `init_from` was trained on another tokenizer's codes
            "model": "maskgit_transformer",  # or besnier_transformer; init_from: as the weights there
            "transformer": {
                "num_layers": 24,
                "num_embeds": 768,
                "intermediate_size": 3072,
                "num_heads": 16,
                "dropout_rate": 0.1,
                # True: attention dropout as in Flax, one mask for batch and heads; no flash attention.
                "broadcast_dropout": False,
            },
            "mask_scheduling_method": "cosine",  # see `train.data.masking.mask_ratios`
            "min_masking_rate": 0.0,  # smaller ratios are raised to this
            "independent_masks": False,  # True: each token by its own coin instead of an exact count
            "mask_order": "random",  # or "halton", "halton+shift"; see `train.data.masking.draw`
            "samples_per_mask_ratio": 1,  # so many samples in turn share a ratio
            "label_drop_rate": 0.1,  # labels replaced by the mask token, for guidance
            "compute_loss_for_all": False,  # True: known tokens count as well
            "label_smoothing": 0.1,
            "optimizer": {
                "lr": 1e-4,
                "init_lr_scale": 1.0,  # factor of the rate of what `init_from` brings; 0: it is frozen
                "beta1": 0.9,
                "beta2": 0.96,
                "epsilon": 1e-8,
                "weight_decay": 0.045,
                # Or "matrices": no decay of biases, norms and embeddings; "matrices+embeddings".
                "decay": "all",
                "clip_norm": 1.0,  # of the whole gradient; 0: none
                "warmup_steps": 5000,  # linear from 0
                "lr_schedule": "constant",  # or "cosine", "linear": falls to lr_min at the end
                "lr_min": 0.0,
            },
            "polyak_decay": 0.9999,  # EMA; 0: none
            "precision": "bfloat16",  # autocast; or float32
            "compile": True,  # layers, embedding, head and loss
            "compile_mode": "default",  # or "max-autotune-no-cudagraphs": minutes longer to compile
            "attention": "auto",  # the kernel that is preferred: auto, flash, cudnn or efficient
            "residual": "float32",  # or "bfloat16": layer norms' outputs, not their statistics
            "recompute": False,  # True: layers run twice and keep a tenth of the memory
            "parallel": "ddp",  # or "fsdp": shards parameters and optimizer state (FSDP2)
            "timeout_minutes": 10.0,  # how long processes wait for one that does not answer
            "profile_steps": "",  # e.g. "10-15": a trace of these steps in the run's folder `profile`
            "log_every_steps": 100,
            "checkpoint_every_steps": 5000,
            "keep_checkpoints": 3,
            # Above 0: the run ends once so many evaluations in turn gave no smaller held-out loss.
            "early_stop_evals": 0,
            "eval_every_steps": 10_000,  # pictures and the loss on held-out tokens; 0: none
            "eval_show_num": 16,
            "sampling": {  # of the pictures: settings of `MaskGIT.generate`
                "sampler": "official",
                "steps": 12,
                "choice_temperature": 4.5,
                "guidance": 0.0,
            },
        }
    )
