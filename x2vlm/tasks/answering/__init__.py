"""Question answering by a decoder, and what it shares with classification: checks, scores, results."""
