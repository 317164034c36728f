"""One run: preparing, running, its folder, planning, manifest, accounting, inspecting, and labelling.

May import everything above it in the list of rooms, which ends with evaluation.
"""
