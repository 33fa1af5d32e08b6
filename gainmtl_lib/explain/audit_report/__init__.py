"""The parts of a run's audit report: head, limits, tables, sentences, figures, pictures, and the page itself."""
