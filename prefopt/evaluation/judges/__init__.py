"""Judges measured against people."""
