"""How ``softcpt-mini`` is trained: a small CLIP whose captions teach it that context words matter."""
