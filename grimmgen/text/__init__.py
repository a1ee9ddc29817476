"""Text: corpora and where they come from, splits, the vocabulary, encoding into ids, and batches."""
