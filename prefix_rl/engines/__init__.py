"""Engines, which generate outside training: transformers, vLLM in this process, or servers."""
