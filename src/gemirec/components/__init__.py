"""Parts that models are made of: plain modules and functions that know nothing of each other."""
