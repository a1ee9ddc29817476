"""Counts beside the network: what followed each context in the training set, and its mixture with the network."""
