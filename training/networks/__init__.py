"""The networks of a run: how they are built, trained, taken over from a bundle, and taught to overlook neighbours.

Imports `training.augmentation`, `training.data`, the run and its settings; nothing that measures. Needs Keras and
TensorFlow.
"""
