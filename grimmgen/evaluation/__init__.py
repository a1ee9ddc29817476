"""Measure models and texts: scores, surprisal, dynamic evaluation, an n-gram baseline, novelty, corpus checks."""
