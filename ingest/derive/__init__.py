"""What is computed from the stored activations when a snapshot is made."""
