"""Train the demo's SAE: activations, training, scoring and the model card."""
