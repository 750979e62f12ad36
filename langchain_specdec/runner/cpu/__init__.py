"""What makes forwards fast on a CPU."""
