"""Where logical batches come from: recorded data, or rollouts that the policy writes.

May import support, types, recipe, data, objectives, policy, environments, feedback and training.
"""
