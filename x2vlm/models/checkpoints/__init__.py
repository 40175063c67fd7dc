"""Weights from elsewhere: the reference's checkpoints, backbones, safetensors files."""
