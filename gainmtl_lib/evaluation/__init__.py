"""From a trained run to numbers: per image, per split, per strategy; and the data check."""
