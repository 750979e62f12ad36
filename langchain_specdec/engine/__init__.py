"""The local decoding engine: slots, forwards, verification, and the thread that runs them."""
