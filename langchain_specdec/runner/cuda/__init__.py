"""What makes forwards fast on a GPU: captured graphs."""
