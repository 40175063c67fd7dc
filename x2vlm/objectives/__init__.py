"""The five losses of X2-VLM pre-training: of features and logits (`losses`), of batches (`step`)."""
