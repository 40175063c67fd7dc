"""Fine-tuning: batches of a task's examples for the training loop of pre-training (`x2vlm.train.loop`)."""
