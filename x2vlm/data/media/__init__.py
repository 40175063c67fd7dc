"""Images and clips as files: measuring, decoding, encoding, fingerprints."""
