"""Rows by seeds: the ablation, the shortcut study, faithfulness."""
