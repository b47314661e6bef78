"""Models: parameters by name, and transformers made of compiled MIL programs."""
