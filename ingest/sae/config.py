"""Refuse configuration keys that change encode() and that no reader heeds.

A release's configuration holds dozens of keys about training, and any trainer adds its own, so
unknown keys are not refused as such: those whose name says that they change what the encoder reads
or gives are, where they are set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featuredb.errors import SaeError

_CHANGES_ENCODE = re.compile(
    r"normali[sz]|standardi[sz]|whiten|cent(er|re)|rescal|signed|(^|_)glu(_|$)|pre_encoder"
    r"|input_(norm|scal|mean|std|transform)|activation_(norm|scal|mean|std)|unit_norm"
)
# Set in training only; encode() of the saved weights does not depend on them.
_TRAINING = {
    "normalize_decoder",
    "normalize_sae_decoder",
    "mse_loss_normalization",
    "scale_sparsity_penalty_by_decoder_norm",
    "decoder_unit_norm",
    "set_decoder_norm_to_unit_norm",
    "normalize_w_dec",
    "pre_encoder_bias_init",
}
_UNSET: tuple[Any, ...] = (None, False, 1.0, "", "none", "None", [], {})
"""1.0 as the factor that changes nothing. The integer 1 is a flag."""


def refuse_unheeded(
    file: Path, config: Mapping[str, Any], heeded: frozenset[str] = frozenset()
) -> None:
    """Raise SaeError where `config`, read from `file`, sets a key that changes encode().

    heeded: the keys that the reader takes into account.
    """
    keys = sorted(
        key
        for key, value in config.items()
        if _CHANGES_ENCODE.search(key.lower())
        and key not in heeded | _TRAINING
        and ((value == 1 and isinstance(value, int)) or value not in _UNSET)
    )
    if keys:
        raise SaeError(
            f"{file}: refused: it sets {', '.join(f'{key}: {config[key]!r}' for key in keys)}, "
            "which the reader of this format does not know: the activations could be wrong"
        )
