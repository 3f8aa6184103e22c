"""From files to a table of images: index every data set, read, check, limit, draw references."""

from .checks import check
from .corruptions import CORRUPTIONS, corrupt, corrupted
from .images import DataError, read_image, read_mask, read_masks
from .index import COLUMNS, available, index, licences
from .sampling import split_references, subset

__all__ = [
    "COLUMNS",
    "CORRUPTIONS",
    "DataError",
    "available",
    "check",
    "corrupt",
    "corrupted",
    "index",
    "licences",
    "read_image",
    "read_mask",
    "read_masks",
    "split_references",
    "subset",
]
