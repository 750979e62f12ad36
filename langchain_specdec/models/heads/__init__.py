"""Trained heads that draft for a model out of its hidden states: formats, modules, and what they have to fit."""
