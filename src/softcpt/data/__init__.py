"""What the images are: suites, splits, draws, pixels."""
