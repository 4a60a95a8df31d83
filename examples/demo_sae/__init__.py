"""How the demo's SAE was made: activations, training, scoring and the model card."""
