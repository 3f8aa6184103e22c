"""Draw industrial images with exact defect masks: training material and an evaluation set."""

from .generate import DEFECT_TYPES, FAMILIES, defects_of, sample, support, write

__all__ = ["DEFECT_TYPES", "FAMILIES", "defects_of", "sample", "support", "write"]
