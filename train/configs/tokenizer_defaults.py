"""Every setting of a training run of the tokenizer, with its meaning; recipes change what differs.

Fields that the official configuration has keep its names (`maskgit_pt/configs/vqgan_config.py`).
"""

import ml_collections

from maskgit_pt.configs import vqgan_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the defaults: networks and losses as the authors published them."""
    official = vqgan_config.get_config()
    return ml_collections.ConfigDict(
        {
            "task": "autoencoding",
            "seed": 42,
            "batch_size": 256,  # images a step, over all processes
            "num_train_steps": 1_000_000,
            "image_size": 256,  # pixels
            "data": {
                "images": "",
                "split": "",  # in the Kaggle layout: train or val
                "crop": "random_resized+flip",  # see `train.data.images.crop`
                "num_workers": 8,  # reading processes for each training process
            },
            # The network; quantizer "vq" or "gumbel". A tuple can be changed on the command line.
            "vqvae": official.vqvae.to_dict()
            | {"channel_multipliers": tuple(official.vqvae.channel_multipliers)},
            "tau_anneal": official.tau_anneal.to_dict(),  # of the Gumbel quantizer
            "reconstruction_loss": "l2",  # or "l1"
            "vqgan": official.vqgan.to_dict(),  # g_adversarial_loss_weight 0: no discriminator
            # width_rule "official", or "image": narrower below 256 px, see `discriminator.widths`.
            "discriminator": official.discriminator.to_dict() | {"width_rule": "image"},
            "perceptual_loss_weight": official.perceptual_loss_weight,
            "perceptual_loss_on_logit": official.perceptual_loss_on_logit,
            # A torchvision ResNet-50 state file, or "off".
            "perceptual_weights": "",
            "optimizer": {
                "g_lr": official.optimizer.g_lr,
                "d_lr": official.optimizer.d_lr,
                "beta1": official.optimizer.beta1,
                "beta2": official.optimizer.beta2,
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "decay": "all",  # or "matrices"
                "clip_norm": 0.0,  # of the whole gradient of each network; 0: none
                "warmup_steps": 0,  # linear from 0
                "lr_schedule": "constant",  # or "cosine", "linear": falls to lr_min at the end
                "lr_min": 0.0,
            },
            "polyak_decay": official.polyak_decay,  # EMA; 0: none
            "precision": "bfloat16",  # autocast; or float32. The quantizer stays in float32
            "compile": True,
            "timeout_minutes": 10.0,  # how long processes wait for one that does not answer
            "profile_steps": "",  # e.g. "10-15": a trace of these steps in the run's folder `profile`
            "log_every_steps": 100,
            "checkpoint_every_steps": 5000,
            "keep_checkpoints": 3,
            "eval_every_steps": 10_000,  # reconstructions and, with eval_images, scores; 0: none
            "eval_show_num": 8,
            # Images that are not trained on: PSNR, SSIM, codebook usage, and rFID as `train.evaluate`.
            "eval_images": "",
            # Of rFID, as `maskgit-evaluate --features`; only "inception" is a published FID. "off": none.
            "eval_features": "inception",
            "inception_weights": "",  # torch-fidelity's file; default: downloaded
        }
    )
