"""Tables derived from the stored activations for a snapshot."""
