"""Many runs compared: a grid of suites, methods, shots and seeds, with intervals; see ``run.compare``."""
