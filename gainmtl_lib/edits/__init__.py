"""Image counterfactuals: a defect taken away or added, with controls."""
