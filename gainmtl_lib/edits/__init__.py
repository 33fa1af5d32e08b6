"""Image counterfactuals: defects healed and pasted, and the controls that keep the edit from telling the class."""
