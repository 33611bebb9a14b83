"""Augmentation: random changes of crops while networks train: turns, changes of optics, and neighbouring cells.

Imports `training.config` and labref. It runs on TensorFlow, which feeds the batches on both backends.
"""
