"""Monitors: rules over features that are stored, calibrated, and run over new texts."""
