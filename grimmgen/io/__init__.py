"""Files, directories and HTTP: what touches the disk and the network. Knows nothing of text or models."""
