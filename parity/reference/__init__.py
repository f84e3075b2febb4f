"""The Flax reference: MaskGIT in JAX as Google's code computes it, to compare `maskgit_pt` with.

Same modules, classes, arguments and parameter tree as the official package
(google-research/maskgit), so that a checkpoint of either fits the other; written for this project,
and running on today's JAX. Layouts are Flax's: images [B, H, W, C], kernels HWIO.
"""
