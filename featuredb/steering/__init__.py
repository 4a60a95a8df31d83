"""Acting on features: edits, the hooks that make them, and what they change."""
