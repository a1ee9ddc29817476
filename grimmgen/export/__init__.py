"""Exports: a model in the formats of other programs."""
