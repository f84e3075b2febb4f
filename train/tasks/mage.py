"""MAGE (Li et al. 2023, arXiv 2211.09117; LTH14/mage): stage 2 for its encoder and decoder.

The loop, data, loss and pictures are those of `masked_tokens`. What differs: the encoder sees a part of the
tokens, so a mask says of every token whether it is masked and whether it is withheld; labels are not needed;
and the frozen tokenizer is part of the model.

The authors take the mean of the loss over all masked tokens of a GPU's batch, whose samples share one ratio;
with as many masked tokens in each, that is the mean of the samples' means.
"""

import ml_collections
import torch
from torch import Tensor, nn

from maskgit_pt.nets.mage import UNUSED
from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from train.configs import mage_defaults
from train.tasks import networks
from train.tasks.masked_tokens import MaskedLoss, MaskedTokens, check_common
from train.tasks.token_source import Tokens


class MageLoss(MaskedLoss):
    """The model with its training loss; see `MaskedLoss`."""

    def forward(
        self, codes: Tensor, masked: Tensor, labels: Tensor, withheld: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `MaskedLoss.forward`.

        Args:
          codes, masked, labels: see there; labels only count for a model with classes.
          withheld: bool [B, n], masked tokens that the encoder does not see, as many in every row.
        """
        logits = self.model(torch.where(masked, -1, codes), labels, withheld)
        return self.compare(logits, codes, masked)


class MageTokens(MaskedTokens):
    """MAGE as a task; see `MaskedTokens`."""

    loss_class = MageLoss
    loss_inputs = ("masked", "labels", "withheld")

    @classmethod
    def check(cls, config: ml_collections.ConfigDict) -> None:
        """See `MaskedTokens.check`."""
        check(config)

    @classmethod
    def make_model(cls, config: ml_collections.ConfigDict, tokens: Tokens) -> nn.Module:
        """The untrained network with room for the tokenizer, if the run has one of the kind."""
        tokenizer = tokens.tokenizer
        vqvae = tokenizer.to_config()["vqvae"] if isinstance(tokenizer, VQVAE) else None
        return networks.make_model(config, tokens.num_codes, tokens.num_tokens, vqvae)

    def prepare_model(self) -> None:
        """Puts the tokenizer in, and freezes what gets no gradient."""
        if isinstance(self.tokenizer, VQVAE):
            self.model.vqgan.load_state_dict(self.tokenizer.state_dict())
        for name, parameter in self.model.named_parameters():
            if name.startswith(UNUSED):
                parameter.requires_grad_(False)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings out of range; ValueError names the field."""
    check_common(config, mage_defaults.get_config(), ("mage",))
    sizes = config.transformer
    for name, accepted, fits in (
        ("independent_masks", "False", not config.independent_masks),
        ("label_drop_rate", "0, as MAGE has no token for no class", config.label_drop_rate == 0),
        ("min_masking_rate", "more than 0 and less than 1", 0 < config.min_masking_rate < 1),
        ("init_other_tokenizer", "False", not config.init_other_tokenizer),
        ("transformer.broadcast_dropout", "False", not sizes.broadcast_dropout),
    ):
        if not fits:
            found = sizes.broadcast_dropout if "." in name else config[name]
            raise ValueError(f"config.{name} is {found}; accepted with the task mage: {accepted}")
    if sizes.intermediate_size % sizes.num_embeds:
        raise ValueError(
            f"config.transformer.intermediate_size is {sizes.intermediate_size}; accepted with the task "
            f"mage: a multiple of num_embeds, {sizes.num_embeds}"
        )
