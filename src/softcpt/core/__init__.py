"""What every room stands on: errors, files, names, seeds. Never imports torch."""
