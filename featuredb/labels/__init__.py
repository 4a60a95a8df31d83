"""Labels of features: written by people and programs, imported, exported, made from statistics."""
