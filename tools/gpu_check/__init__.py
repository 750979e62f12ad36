"""Runs on a GPU what no other machine can: parts in order of value, each in a process and a time box of its own.

    python -m tools.gpu_check --rehearse            # on a CPU, tiny shapes: finds typos before device minutes do

How it is taken to a machine with a GPU, and run there, is in docs/gpu-check.md.
"""
