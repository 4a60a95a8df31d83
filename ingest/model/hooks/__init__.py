"""Hook points of a language model: resolve their names and capture their values."""

from ingest.model.hooks.capture import Capture, capture, forward_to_hooks
from ingest.model.hooks.hook_point import HookPoint
from ingest.model.hooks.resolve import layer_count, layer_paths, resolve_hook

__all__ = [
    "Capture",
    "HookPoint",
    "capture",
    "forward_to_hooks",
    "layer_count",
    "layer_paths",
    "resolve_hook",
]
