"""What a model and a training step cost: FLOPs, bytes, scaling over GPUs. No torch."""
