"""X2-VLM as a library: data formats, model, objectives, training loop and tasks. Imports neither ray nor mlflow."""
