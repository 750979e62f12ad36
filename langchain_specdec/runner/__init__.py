"""Forwards of one model over its slots. No policy."""
