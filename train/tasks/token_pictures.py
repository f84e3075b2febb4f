"""Pictures of what a transformer in training makes: samples, and images with tokens filled in."""

import ml_collections
import torch
from PIL import Image
from torch import Tensor

from maskgit_pt import pipeline, utils


def samples(model: pipeline.MaskGIT, config: ml_collections.ConfigDict) -> Image.Image:
    """A grid of generated images; the same noise every time.

    Args:
      model: with the weights to show.
      config: of the run: how many, of which classes, by which settings.
    """
    count, classes = config.eval_show_num, max(1, config.num_class)
    labels = [i * classes // count for i in range(count)]
    if classes < count:
        labels = [i % classes for i in range(count)]
    result = model.generate(labels, seed=config.seed, **config.sampling.to_dict())
    return utils.visualize_images(result.images, columns=min(8, count), enlarge=True)


@torch.inference_mode()
def filled_in(
    model: pipeline.MaskGIT, codes: Tensor, labels: Tensor, masked: Tensor, count: int = 8
) -> Image.Image:
    """Rows of: the image as the tokenizer gives it back, what the model sees of it, its most likely
    completion in one step.

    Args:
      model: with the weights to show.
      codes: int64 [B, n].
      labels: int64 [B].
      masked: bool [B, n].
      count: how many to show.
    """
    codes, labels, masked = (v[:count].to(model.device) for v in (codes, labels, masked))
    logits = model.transformer.code_logits(codes.where(~masked, -1), labels, model.num_codes)
    guess = torch.where(masked, logits[..., : model.num_codes].argmax(-1), codes)
    grid = (len(codes), model.side, model.side)
    whole = model.tokens_to_images(codes.view(grid))
    patch = model.image_size // model.side
    visible = (~masked).view(grid)[:, None].repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    seen = torch.where(visible.cpu(), whole, 0.5)
    rows = torch.cat([whole, seen, model.tokens_to_images(guess.view(grid))])
    return utils.visualize_images(rows, columns=len(codes), enlarge=True)
