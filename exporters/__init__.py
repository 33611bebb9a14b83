"""Exporters: a trained run → a bundle that a lab can run without TensorFlow."""
