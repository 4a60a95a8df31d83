"""Load an SAE from a reference."""

from __future__ import annotations

from pathlib import Path

import torch

from featuredb.errors import SaeError, first_line
from featuredb.store.files.atomic import sha256_of
from ingest.sae.detect import detect, read
from ingest.sae.naming import short_name
from ingest.sae.references import resolve
from ingest.sae.sae import LoadedSae


def load_sae(
    ref: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> LoadedSae:
    """Load the SAE that `ref` names.

    `ref` is a folder or a weight file of any format in `ingest.sae.formats`; `SET/layer_5` of a set
    with one file per layer; or
    `hf:owner/repo/path[@revision]`, fetched to the hub's cache; or `sae-lens:release/id`, looked
    up in SAELens's catalog. `dtype` is what it computes in: float32 unless given. `revision` is
    for hub references that do not state one.

    Raises SaeError where nothing there is an SAE, several are, the files are damaged, refused,
    not finite, or contradict each other; MissingExtraError where a reference needs a package
    that is not installed.
    """
    resolved = resolve(ref, revision=revision)
    place = detect(resolved)
    try:
        parts = read(place)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # A configuration with a word where a number should be, a list for a dictionary, …
        raise SaeError(
            f"{place.folder}: its configuration does not make sense ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
    files = (place.weights, *parts.files)
    name = short_name(place.label)
    if parts.cross_layer is not None:
        folder = short_name(place.label.with_name("sae.safetensors"))
        name = f"{folder}-{parts.cross_layer.member}"
    sae = LoadedSae(
        encoder=parts.encoder,
        decoder=parts.decoder,
        name=name,
        format=parts.format,
        architecture=parts.architecture,
        hook=parts.hook or place.hints.get("hook"),
        hook_out=parts.hook_out or place.hints.get("hook_out"),
        model_name=parts.model_name or place.hints.get("model_name"),
        prepend_bos=parts.prepend_bos,
        context_size=parts.context_size,
        stated_l0=parts.stated_l0 or place.hints.get("l0"),
        config=parts.config,
        files=files,
        hash=sha256_of(*files),
        source=str(ref),
        processed_weights=parts.processed_weights,
        excluded_tokens=parts.excluded_tokens,
        cross_layer=parts.cross_layer,
        places_out=parts.places_out,
    )
    return sae.to(device, dtype or torch.float32)
