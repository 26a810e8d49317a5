"""Tandem's reference engine: a small, real Llama engine in numpy with a paged KV cache."""

from __future__ import annotations

import os

# One BLAS thread: products must not depend on how a library splits them, and the machine belongs to several engines.
# It must be set before numpy is first imported, hence here.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
