"""The X2-VLM network: vision, text and fusion encoders and their heads."""
