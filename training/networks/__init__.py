"""The networks of a run: how they are built, trained, taken over from a bundle, taught to overlook neighbours, and
distilled into one that looks once.

Imports `training.augmentation`, `training.data`, the run and its settings; nothing that measures. Needs Keras and
TensorFlow.
"""
