"""Loading sparse autoencoders from every published format into one object."""

from ingest.sae.codes import SparseCodes
from ingest.sae.load import load_sae
from ingest.sae.sae import LoadedSae

__all__ = ["LoadedSae", "SparseCodes", "load_sae"]
