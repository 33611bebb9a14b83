"""Read by pytest before tests/conftest.py, so that it is set before NumPy is loaded, and for processes that tests
start."""

from __future__ import annotations

import os

# the threads of OpenBLAS wait for the next product by spinning: with two of them, searches took thrice the processor's
# time, of which the other workers of the tests are in need
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
