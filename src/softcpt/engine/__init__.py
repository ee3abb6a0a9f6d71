"""One run, from its configuration to its adapter and its scores."""
