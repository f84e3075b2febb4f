"""Evaluation of samples and tokenizers: one named protocol, from images to tables.

`evaluate` and `evaluate_tokenizer` do the whole; the metrics on feature arrays are `fit` and
`frechet_distance`, `inception_score`, `manifold_metrics`.
"""

from maskgit_pt.launch import Processes
from train.evaluation.context import Context
from train.evaluation.frechet import Statistics, fit, frechet_distance
from train.evaluation.generated import ModelSource
from train.evaluation.inception_score import inception_score
from train.evaluation.manifold import manifold_metrics
from train.evaluation.reconstruction import LPIPS, codebook_use, psnr, ssim
from train.evaluation.report import Evaluation
from train.evaluation.samples import METRICS, evaluate
from train.evaluation.sources import ArraySource, open_source
from train.evaluation.tokenizers import TOKENIZER_METRICS, evaluate_tokenizer

__all__ = [
    "LPIPS",
    "METRICS",
    "TOKENIZER_METRICS",
    "ArraySource",
    "Context",
    "Evaluation",
    "ModelSource",
    "Statistics",
    "Processes",
    "codebook_use",
    "evaluate",
    "evaluate_tokenizer",
    "fit",
    "frechet_distance",
    "inception_score",
    "manifold_metrics",
    "open_source",
    "psnr",
    "ssim",
]
