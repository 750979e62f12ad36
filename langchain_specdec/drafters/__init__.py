"""Drafters propose tokens for the target model to check."""
