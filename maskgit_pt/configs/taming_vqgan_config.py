"""The tokenizer of Besnier & Chen (2023), by the names of the `model.yaml` it is published with."""

import ml_collections

from maskgit_pt.nets.taming_vqgan import TamingVQGAN

# model.yaml (in `ddconfig` where not said otherwise) -> argument of `TamingVQGAN`.
ARGUMENTS = {
    "z_channels": "z_channels",
    "resolution": "resolution",
    "ch": "channels",
    "ch_mult": "channel_multipliers",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attention_resolutions",
    "dropout": "dropout",
}
OUTER_ARGUMENTS = {"embed_dim": "embed_dim", "n_embed": "num_codes"}  # beside `ddconfig`
FIXED = {"double_z": False, "in_channels": 3, "out_ch": 3}  # in `ddconfig`; all that is supported


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration of vqgan_imagenet_f16_1024: `model.yaml`'s tree."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "base_learning_rate": 4.5e-06,
                "target": "taming.models.vqgan.VQModel",
                "params": {
                    "embed_dim": 256,
                    "n_embed": 1024,
                    "ddconfig": {
                        "double_z": False,
                        "z_channels": 256,
                        "resolution": 256,  # pixels
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch": 128,
                        "ch_mult": [1, 1, 2, 2, 4],
                        "num_res_blocks": 2,
                        "attn_resolutions": [16],
                        "dropout": 0.0,
                    },
                    "lossconfig": {
                        "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
                        "params": {
                            "disc_conditional": False,
                            "disc_in_channels": 3,
                            "disc_start": 0,
                            "disc_weight": 0.8,
                            "codebook_weight": 1.0,
                        },
                    },
                },
            }
        }
    )


def build(config: ml_collections.ConfigDict) -> TamingVQGAN:
    """Makes the network of a configuration with the fields of `get_config`.

    Raises:
      ValueError: a field is missing, or has a value that is not supported.
    """
    return TamingVQGAN(**arguments(config.to_dict()))


def arguments(tree: dict) -> dict:
    """The constructor's arguments from the tree of a `model.yaml`.

    Raises:
      ValueError: a field is missing, or has a value that is not supported.
    """
    try:
        params = tree["model"]["params"]
        inner = params["ddconfig"]
        result = {ours: params[theirs] for theirs, ours in OUTER_ARGUMENTS.items()}
        result |= {ours: inner[theirs] for theirs, ours in ARGUMENTS.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"no model.params.ddconfig of a VQGAN: {type(error).__name__} {error}"
        ) from None
    for name, value in FIXED.items():
        if inner.get(name, value) != value:
            raise ValueError(f"{name} is {inner[name]!r}; accepted: {value!r}")
    return result


def tree(arguments: dict) -> dict:
    """The inverse of `arguments`: a `model.yaml`'s tree, the rest of it as published."""
    result = get_config().to_dict()
    params = result["model"]["params"]
    params |= {theirs: arguments[ours] for theirs, ours in OUTER_ARGUMENTS.items()}
    params["ddconfig"] |= {theirs: arguments[ours] for theirs, ours in ARGUMENTS.items()}
    return result
