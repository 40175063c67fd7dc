"""What captioning needs beside its evaluation: how captions are scored, and how they are learned."""
