"""Load sparse autoencoders of every published format."""

from ingest.sae.codes import SparseCodes
from ingest.sae.load import load_sae
from ingest.sae.references import members
from ingest.sae.sae import LoadedSae

__all__ = ["LoadedSae", "SparseCodes", "load_sae", "members"]
