"""Proof from bytes: stored artifacts, the life of one sample, and MLflow against the manifests."""
