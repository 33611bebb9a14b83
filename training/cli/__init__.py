"""The command `python -m training`. It may import every room; those that need TensorFlow are imported when a command
runs."""
