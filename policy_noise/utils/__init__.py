"""Small helpers for the whole package."""
