"""Figures: of a shipped bundle, of a run's latent space, and of variants of a run that are trained to be compared.

Imports `training.networks`, `training.data`, the run and its settings. `evaluate`, `latents`, `triplets`, `statistics`
and `compare` load without TensorFlow.
"""
