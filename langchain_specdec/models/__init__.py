"""Models: found, loaded, checked and given a runner."""
