"""How the weights that the package carries were made. Not installed with it."""
