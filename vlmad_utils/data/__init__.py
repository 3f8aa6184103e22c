"""From files to a table of images: index data sets, read, check, limit, draw references."""

from .checks import check
from .corruptions import CORRUPTIONS, corrupt, corrupted
from .images import DataError, decode_image, read_image, read_mask, read_masks
from .index import COLUMNS, index
from .roots import available, licences
from .sampling import split_references, subset

__all__ = ["COLUMNS", "CORRUPTIONS", "DataError", "available", "check", "corrupt", "corrupted"]
__all__ += ["decode_image", "index", "licences", "read_image", "read_mask", "read_masks"]
__all__ += ["split_references", "subset"]
