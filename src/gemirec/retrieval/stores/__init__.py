"""Stores of cached interests: a memory map on the disk by default, Redis for many machines, LMDB, a dictionary."""

from gemirec.retrieval.stores.base import Bulk, Found, InterestStore, StoreInfo, StoreUnavailableError
from gemirec.retrieval.stores.bulk import bulk_of_cache
from gemirec.retrieval.stores.codec import Codec, Layout, history_digest
from gemirec.retrieval.stores.embedded import fill_store, open_store, served_generation, switch_store
from gemirec.retrieval.stores.memory import memory_store

__all__ = [
    "Bulk",
    "Codec",
    "Found",
    "InterestStore",
    "Layout",
    "StoreInfo",
    "StoreUnavailableError",
    "bulk_of_cache",
    "fill_store",
    "history_digest",
    "memory_store",
    "open_store",
    "served_generation",
    "switch_store",
]
