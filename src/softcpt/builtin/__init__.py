"""Suites that the package makes itself: drawn scenes, and scikit-learn's handwritten digits."""
