"""Errors, files, plug-ins, seeds, logs, profiling, memory, and the caches on disk.

Imports nothing of prefopt.
"""
