"""Figures: pictures with maps, curves, strategies side by side."""
