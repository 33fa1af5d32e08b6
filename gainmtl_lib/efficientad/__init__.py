"""EfficientAD: anomalies found from good parts alone."""
