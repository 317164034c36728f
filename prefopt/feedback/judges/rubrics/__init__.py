"""Rubrics that come with prefopt, by the names of their files."""
