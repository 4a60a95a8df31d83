"""Activations as other programs write them, read into a database and written from one."""
