"""Rules over features: the language of monitors, and what evaluates it on stored and new text."""
