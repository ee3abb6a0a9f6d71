"""Results as one page: numbers, figures, and an HTML file that needs nothing but itself."""
