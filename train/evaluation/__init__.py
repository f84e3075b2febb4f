"""Evaluation of samples and tokenizers: one named protocol, from images to tables."""
