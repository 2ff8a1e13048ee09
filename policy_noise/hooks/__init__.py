"""The hook for training loops. Most modules here find out which loss belongs to which masked batch."""
