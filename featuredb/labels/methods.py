"""How labels were made, for those that featuredb makes itself."""

HUMAN = "human"
"""A person wrote it."""

AUTOMATIC = "automatic"
"""Rules made it of stored statistics. It gives way to any other."""

IMPORTED = "imported"
"""From a file that does not say."""
