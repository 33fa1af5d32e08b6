"""The data that the project makes: synthetic surfaces, and photographs with a planted cue."""
