"""Retrieval: indices over item vectors, and the one routine that merges K lists into one."""
