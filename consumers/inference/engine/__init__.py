"""What makes tokens. Two adapters pass one contract suite: `vllm` and `scripted`."""
