"""Data: reading sources, preparing and checking training rows, tokenizing demonstrations."""
