"""Doors to the outside."""
