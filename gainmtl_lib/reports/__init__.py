"""What the commands print and write, a file per command."""
