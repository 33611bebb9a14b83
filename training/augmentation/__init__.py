"""Random changes of crops while networks train: turns, optics, and cells laid beside the one in the middle.

Imports `training.config` and labref. All of it runs on TensorFlow, which feeds the batches on either backend.
"""
