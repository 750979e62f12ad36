"""The engines that can be started: what is particular to each, in a file of its own."""
