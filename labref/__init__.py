"""labref: adaptive reference cells for blood-cell analysers."""

import os

__version__ = "0.1.0"

# ONNX Runtime (1.31 and later) keeps a record of its use below the home folder, and sends it where it can, unless
# this is set when it is imported. Nothing of a lab leaves its computer
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
