"""Objectives that learn from preferences; one paper a file."""
