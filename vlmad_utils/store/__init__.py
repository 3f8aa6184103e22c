"""Keep arrays under a kind and a key: on disk in checksummed shards, or in memory."""

from .disk import DiskStore
from .errors import SYSTEM_LIMITS, StoreError
from .header import LAYOUT
from .memory import MemoryStore

Store = DiskStore | MemoryStore

__all__ = [
    "LAYOUT",
    "SYSTEM_LIMITS",
    "DiskStore",
    "MemoryStore",
    "Store",
    "StoreError",
]
