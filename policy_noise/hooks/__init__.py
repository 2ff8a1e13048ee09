"""Hooks into a training loop: which loss belongs to which masked batch."""
