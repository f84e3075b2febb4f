"""Google's transformer with the self-guidance module of UnlockMGM (Hur et al., NeurIPS 2024, arXiv
2410.13136; JiwanHur/UnlockMGM).

The module turns the last layer's output of a first pass into one feature a layer. A second pass over a
sequence of masks alone takes these features into its values. What the second pass predicts is coarser
than the first; sampling moves away from it.

Google's network is frozen here and keeps its names; `Transformer` says what it is. The authors run it
with the erf GELU, and the module was trained on that; Google's is the tanh form (`gelu` selects).

Axes: B batch, N positions (class and image tokens), D width, L layers, F factors, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.nets.maskgit_transformer import MlmLayer, Mlp, Transformer

GELUS = ("erf", "tanh")
# OFFICIAL QUIRK: torch's default in this one LayerNorm, BERT's 1e-12 in all others.
ANCHOR_EPSILON = 1e-5
_SUBSTITUTED = 0.3  # share of the known tokens that training replaces
_LABEL_SMOOTHING = 0.1
_RECONSTRUCTION_WEIGHT = 0.1  # `lambda_var`
_IGNORED = -100


class ClassAnchor(nn.Module):
    """A direction for every class: sum over F of f (P + C), LayerNorm, dense layer."""

    def __init__(self, num_classes: int, hidden_size: int, factors: int):
        super().__init__()
        self.mlp_p = nn.Embedding(1, hidden_size * factors)
        self.mlp_c = nn.Embedding(num_classes, hidden_size * factors)
        self.mlp_f = nn.Embedding(1, factors)
        self.mlp_t = nn.Linear(hidden_size, hidden_size)
        self.layer_norm = nn.LayerNorm(hidden_size, eps=ANCHOR_EPSILON)

    def forward(self, labels: Tensor) -> Tensor:
        """Classes int64 [B], from 0 -> anchors [B, 1, D]."""
        return self.mlp_t(self.layer_norm(self.factor_sum(labels)))

    def factor_sum(self, labels: Tensor) -> Tensor:
        """Classes int64 [B] -> [B, 1, D]: the factors f of all D numbers are the same."""
        factors = self.mlp_f.weight.shape[1]
        both = self.mlp_p.weight + self.mlp_c(labels)  # [B, D F], F the faster index
        return (self.mlp_f.weight * both.unflatten(-1, (-1, factors))).sum(-1)[:, None]


class TopDownLayer(nn.Module):
    """What one layer of the second pass is told: two dense layers without bias."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size, bias=False)
        self.linear2 = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, D] -> what goes on to the layer below, and this layer's feature."""
        x = self.linear(x)
        return x, self.linear2(x)


class SelfGuidance(nn.Module):
    """The trained module: from the first pass's last layer to one feature for each layer."""

    def __init__(self, num_classes: int, hidden_size: int, num_layers: int, factors: int):
        super().__init__()
        self.top_down_transform = nn.Parameter(torch.eye(hidden_size))
        self.cls_anchor_gen = ClassAnchor(num_classes, hidden_size, factors)
        self.decoders = nn.ModuleList(TopDownLayer(hidden_size) for _ in range(num_layers))

    def cosine(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Of the angle between each position [B, N, D] and its class's anchor; [B, N, 1]."""
        anchor = F.normalize(self.cls_anchor_gen(labels), dim=-1)  # norms of at least 1e-12
        return F.normalize(hidden, dim=-1) @ anchor.mT

    def gate(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """How much each position points along its class's anchor, 0 to 1; [B, N, 1]."""
        return self.cosine(hidden, labels).clamp(0, 1)

    def forward(self, hidden: Tensor, labels: Tensor) -> list[Tensor]:
        """Features for the values of every layer.

        Args:
          hidden: [B, N, D], `Transformer.hidden` of the first pass.
          labels: int64 [B], classes from 0.

        Returns:
          L tensors [B, N, D], the first layer's first.
        """
        # OFFICIAL QUIRK: multiplied from the right, not transposed as the weight of a dense layer.
        x = (hidden * self.gate(hidden, labels)) @ self.top_down_transform
        features = []
        for decoder in reversed(self.decoders):
            x, feature = decoder(x)
            features.append(feature)
        return features[::-1]


class SelfGuidedTransformer(Transformer):
    """Google's transformer with a self-guidance module.

    `forward` and `code_logits` are the first pass, Google's network alone.

    Args:
      vocab_size: V, as of `Transformer`.
      num_classes: the classes of the module; the codes are the V - num_classes - 1 ids before them.
      tg_factor: F; 16 in the published files.
      gelu: "erf", as the authors run it, or "tanh", as Google trained the frozen part.
      **sizes: the other arguments of `Transformer`.

    Raises:
      ValueError: another gelu, or too few ids for the classes.
    """

    model_type = "self_guided_transformer"

    def __init__(
        self,
        vocab_size: int,
        num_classes: int = 1000,
        tg_factor: int = 16,
        gelu: str = "erf",
        **sizes: Any,
    ):
        if gelu not in GELUS:
            raise ValueError(f"gelu is {gelu!r}; accepted: {', '.join(GELUS)}")
        self.num_codes = vocab_size - num_classes - 1
        if self.num_codes < 1:
            raise ValueError(f"{vocab_size} ids are too few for {num_classes} classes and codes")
        super().__init__(vocab_size, **sizes)
        self._config |= {"num_classes": num_classes, "tg_factor": tg_factor, "gelu": gelu}
        width, layers = self._config["hidden_size"], self._config["num_hidden_layers"]
        # OFFICIAL QUIRK: a copy of the word embeddings, frozen like them.
        self.head = nn.Embedding(vocab_size, width)
        self.guidance = SelfGuidance(num_classes, width, layers, tg_factor)
        self.select_gelu(gelu)

    def select_gelu(self, gelu: str) -> None:
        """Runs the network with the "erf" or the "tanh" form from now on."""
        self._config["gelu"] = gelu
        for module in self.modules():
            if isinstance(module, Mlp | MlmLayer):
                module.erf_gelu = gelu == "erf"

    @property
    def head_weight(self) -> Tensor:
        """The head's own matrix [V, D]."""
        return self.head.weight

    def second_pass(
        self,
        hidden: Tensor,
        labels: Tensor,
        num_logits: int | None = None,
        first_position: int = 0,
        layers: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """The prediction u that guidance moves away from.

        Args:
          hidden: [B, N, D], `hidden` of the first pass.
          labels: int64 [B], classes from 0.
          num_logits, first_position: as in `forward`.
          layers: gets (input, output) of every layer, for training.

        Returns:
          logits [B, N - first_position, V or num_logits].
        """
        # Every position is the mask, the class's too: class and content come through the values alone.
        x = self.embed(torch.full(hidden.shape[:2], -1, device=hidden.device))
        # OFFICIAL QUIRK: values are value(x) + value(feature), so that their bias counts twice.
        for layer, feature in zip(self.layers, self.guidance(hidden, labels), strict=True):
            below, x = x, layer(x, feature)
            if layers is not None:
                layers.append((below, x))
        return self.mlm_layer(x[:, first_position:], self.head_weight[:num_logits])

    def code_logits(
        self,
        tokens: Tensor,
        labels: Tensor,
        num_codes: int,
        self_guidance: float | Tensor | None = None,
    ) -> Tensor:
        """Predicts the image tokens, guided if asked for.

        Args:
          tokens, labels, num_codes: as of `Transformer`.
          self_guidance: scale s, or one a sample, [B]; None or 0 for the first pass alone.

        Returns:
          z = u + (1 + s) (b - u), logits [B, h*w, num_codes]; b is the first pass, u the second.
        """
        if self_guidance is None or (isinstance(self_guidance, float | int) and self_guidance == 0):
            return super().code_logits(tokens, labels, num_codes)
        class_tokens = torch.where(labels < 0, labels, labels + num_codes)
        hidden = self.hidden(torch.cat([class_tokens[:, None], tokens], 1))
        first = self.mlm_layer(hidden[:, 1:], self.head_weight[:num_codes])
        second = self.second_pass(hidden, labels.clamp(min=0), num_codes, first_position=1)
        if isinstance(self_guidance, Tensor):
            self_guidance = self_guidance[:, None, None]
        return second + (1 + self_guidance) * (first - second)

    def training_losses(self, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the authors train the module with.

        Args:
          input_ids: int64 [B, N], class id first; some tokens replaced, see `substitute`.
          targets: int64 [B, N], -100 where no loss is taken.

        Returns:
          The second pass's logits [B, N, V], its cross-entropy (label smoothing .1, over all V), and
          .1 times the error of each `linear` in giving a layer's input from its output, which trains
          `linear` alone.
        """
        layers: list[tuple[Tensor, Tensor]] = []
        hidden = self.hidden(input_ids)
        logits = self.second_pass(hidden, input_ids[:, 0] - self.num_codes, layers=layers)
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(),
            ignore_index=_IGNORED, label_smoothing=_LABEL_SMOOTHING,
        )  # fmt: skip
        errors = [
            F.mse_loss(decoder.linear(after.detach()), before.detach())
            for decoder, (before, after) in zip(self.guidance.decoders, layers, strict=True)
        ]
        return logits, loss, _RECONSTRUCTION_WEIGHT * torch.stack(errors).sum()

    @torch.no_grad()
    def substitute(
        self, input_ids: Tensor, exponential: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Replaces some known tokens by draws, for `training_losses`.

        Args:
          input_ids: int64 [B, N], class id first; masked tokens -1 or V - 1.
          exponential: standard exponential noise [B, N - 1, codes], for the draws.
          uniform: [B, N - 1], which tokens: the smallest.

        Returns:
          The sequence with the replaced tokens, and the targets: what stood there, -100 elsewhere.
          OFFICIAL QUIRK: without a known token one masked token is replaced, and its target is the mask.
        """
        mask = self._config["vocab_size"] - 1
        labels, tokens = input_ids[:, :1], input_ids[:, 1:] % (mask + 1)
        blank = torch.full_like(tokens, -1)
        logits = super().code_logits(blank, labels[:, 0] - self.num_codes, self.num_codes)
        # OFFICIAL QUIRK: a second softmax, of probabilities, so that all codes are nearly as likely.
        drawn = (logits.softmax(-1).softmax(-1) / exponential).argmax(-1)
        known = tokens != mask
        count = (known.sum(-1) * _SUBSTITUTED).round().clamp(min=1)
        rank = uniform.masked_fill(~known, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
        replaced = rank < count[:, None]
        sequence = torch.cat([labels, torch.where(replaced, drawn, tokens)], 1)
        targets = tokens.masked_fill(~replaced, _IGNORED)
        return sequence, F.pad(targets, (1, 0), value=_IGNORED)
