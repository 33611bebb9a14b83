"""The environment of the tests, and of the processes that they start. Imported before NumPy and labref are.

One thread for the products of matrices: the threads of OpenBLAS wait for the next product by spinning. With two of
them, searches took thrice the processor's time, of which the other workers of the tests are in need.

Bytecode is kept, whatever the machine is set to: the tests start labref hundreds of times, and an agent that has to
compile it first takes half as long again to start.

Garbage is collected a thirtieth as often: while a network is built, a tenth of the time went into that.

Networks in tests take a few steps: XLA would compile for longer than it saves.
"""

from __future__ import annotations

import gc
import os
import sys

gc.set_threshold(20_000, 10, 10)
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
