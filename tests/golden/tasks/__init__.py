"""Checks of golden cases of downstream tasks, and the synthetic cases that they are tested on."""
