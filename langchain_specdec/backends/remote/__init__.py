"""Servers of completions: what connections to all kinds of them share."""
