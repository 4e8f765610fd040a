"""The fast path: each shared token encoded once, nothing computed on padding."""
