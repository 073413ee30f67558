"""Models: one file each, the contract in ``base``, the catalogue in ``catalog``."""
