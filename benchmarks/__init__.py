"""What the package costs, what it is worth, and what it works with: run each by ``python -m`` of its name."""
