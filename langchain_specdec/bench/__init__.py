"""Measures contestants, ours and peers, against each other on the same weights: `specdec bench`."""
