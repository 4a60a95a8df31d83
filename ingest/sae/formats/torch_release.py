"""Releases that are one torch file: dictionary_learning, OpenAI and Goodfire.

Their file names are ambiguous (`ae.pt`, `8.pt`), so the contents determine the format.
"""

from __future__ import annotations

from featuredb.errors import SaeError
from ingest.sae.formats import dictionary_learning, goodfire, openai
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.tensors import Tensors, read_torch

DICTIONARY = dictionary_learning.WEIGHTS
NEEDS = f"{dictionary_learning.NEEDS}; {openai.NEEDS}; {goodfire.NEEDS}"


def read(place: SaeFiles) -> SaeParts:
    """Load a .pt or .pth file. Raises SaeError if its format is unknown."""
    content = read_torch(place.weights)
    if not isinstance(content, dict):
        raise SaeError(
            f"{place.weights}: holds a {type(content).__name__}, not a state dict of tensors"
        )
    if "pre_bias" in content:
        return openai.parts(place, Tensors(place.weights, content))
    if "encoder_linear.weight" in content:
        return goodfire.parts(place, Tensors(place.weights, content))
    if dictionary_learning.recognizes(content):
        return dictionary_learning.parts(place, content)
    raise SaeError(
        f"{place.weights} is not an SAE of a known format: it holds "
        f"{', '.join(sorted(map(str, content))[:10]) or 'nothing'}; needed is one of: {NEEDS}"
    )
