"""Objectives that train a reward model; one paper a file."""
