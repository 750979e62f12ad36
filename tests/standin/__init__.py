"""A stand-in for Text Generation Inference: its launcher's processes and its HTTP contract, with real tokens."""
