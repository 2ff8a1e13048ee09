"""What the package costs, what it is worth, and what it works with: each benchmark is run by ``python -m`` of its name."""
