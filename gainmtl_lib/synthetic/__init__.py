"""Synthetic surfaces with and without a cue: the data that the project makes."""
