"""Whole experiments: the demo, comparisons and searches."""
