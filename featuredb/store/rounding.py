"""What activations may be rounded to: a name each, which the command line knows without numpy."""

from __future__ import annotations

from typing import Literal

Values = Literal["float16", "float32", "log8"]
"""See `featuredb.store.schemas.stored`."""
