"""Completions: what is asked for, and what a reader gets."""
