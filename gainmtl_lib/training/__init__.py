"""Losses, their schedule, and the training of a run."""
