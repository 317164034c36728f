"""Arms against a baseline, over seeds: statistics, verdicts, and what differs beside what was meant to."""
