"""Durations for people."""


def rough_duration(seconds: float) -> str:
    """A duration in one unit, such as `12 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
