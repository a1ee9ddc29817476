"""The network: cells, backends that compute them, the model, one training step and the optimiser."""
