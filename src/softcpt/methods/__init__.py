"""How scores are made; sees tensors and names, never files."""
