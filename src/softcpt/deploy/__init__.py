"""An adapter in use."""
