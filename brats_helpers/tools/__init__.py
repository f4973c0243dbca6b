"""What only a person at a terminal calls."""
