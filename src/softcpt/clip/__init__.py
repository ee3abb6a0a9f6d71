"""What a frozen CLIP can do for us."""
