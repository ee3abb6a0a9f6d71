"""Shapes are checked at run time in all tests; torch keeps to one thread so that workers do not fight."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(
    ["softcpt.methods", "softcpt.clip.text", "softcpt.clip.tokens", "softcpt.engine.metrics"],
    "beartype.beartype",
)
