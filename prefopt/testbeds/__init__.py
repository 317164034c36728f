"""Worlds in which the right answer is known: bandits whose optimum is a formula, and the pocket world.

May import everything but the command line.
"""
