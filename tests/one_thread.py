"""One thread for the products of matrices, here and in the processes that tests start. Imported before NumPy is.

The threads of OpenBLAS wait for the next product by spinning: with two of them, searches took thrice the processor's
time, of which the other workers of the tests are in need.
"""

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
