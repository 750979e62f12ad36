"""Where completions come from: the local engine, or a server."""
