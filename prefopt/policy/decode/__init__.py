"""Drawing completions: samplers, their noise, and the keys and values of what was read so far."""
