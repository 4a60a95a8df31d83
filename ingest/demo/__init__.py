"""The demo's assets: a small model, a corpus and a sparse autoencoder trained on them."""
