"""The fast path: each shared token is encoded once, and nothing is computed on padding."""
