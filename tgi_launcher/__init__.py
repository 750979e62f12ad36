"""Will start Text Generation Inference servers on this machine. Empty for now."""

__all__: list[str] = []
