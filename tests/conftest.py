"""Shapes are checked at run time in all tests; torch keeps to one thread so that workers do not fight.

No test writes to the user's cache of image features: those about it name a folder.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SOFTCPT_CACHE"] = "off"
os.environ.pop("SOFTCPT_CACHE_LIMIT", None)

from jaxtyping import install_import_hook

install_import_hook(
    [
        "softcpt.methods",
        "softcpt.clip.text",
        "softcpt.clip.text_shared",
        "softcpt.clip.tokens",
        "softcpt.engine.metrics",
    ],
    "beartype.beartype",
)
