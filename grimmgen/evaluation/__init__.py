"""Measuring models and text: scores, surprisal, dynamic evaluation, a baseline, novelty, corpus checks."""
