"""Evaluation: one top-k pass, every metric from it, with intervals."""
