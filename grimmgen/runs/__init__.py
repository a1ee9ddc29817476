"""Runs on disk: checkpoints, the registry, logged events and learning curves."""
