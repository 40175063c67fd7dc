"""Loading weights: the reference's checkpoints, backbones, safetensors files."""
