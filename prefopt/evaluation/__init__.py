"""What is measured on held-out data, with intervals: metrics, win rates, calibration, and judges against people.

May import everything above it in the list of rooms, which ends with sources.
"""
