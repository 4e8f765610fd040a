"""What generates, outside training: transformers, vLLM in this process, or servers."""
