"""The training loop, optimisers, checkpoints, trackers and devices. It names no algorithm.

May import support, types, recipe, data, objectives, policy, environments and feedback.
"""
