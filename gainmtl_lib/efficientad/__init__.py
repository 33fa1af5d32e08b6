"""EfficientAD: anomalies found from good parts alone (Batzner, Heckler, König 2023, arXiv 2303.14535)."""
