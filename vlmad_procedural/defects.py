"""All drawn defects, read-only: ``DEFECTS[name](image, support, rng, area, contrast)``.

Parameters of each
------------------
image : (S, S, 3) float64 in 0..1
support : (S, S) bool, where a defect may lie
area : share of the image that the defect covers, reached approximately
contrast : in (0, 1], scales the visible change linearly

Each returns the image and the mask (S, S) bool. The mask is exact: pixels of which more than
``marks.LEVEL`` was replaced.
"""

from collections.abc import Mapping
from types import MappingProxyType

from . import defects_form as form
from . import defects_surface as surface
from .aliases import DrawDefect
from .defects_eval import EVAL_DEFECTS

DEFECTS: Mapping[str, DrawDefect] = MappingProxyType(
    {
        "crack": form.crack,
        "cut": form.cut_open,
        "contamination": surface.contamination,
        "foreign_patch": surface.foreign_patch,
        "discolouration": surface.discolouration,
        "burn": surface.burn,
        "pit": form.pit,
        "chip": form.chip,
        "smear": surface.smear,
        "fold": form.fold,
        "displaced_texture": form.displaced_texture,
        "dark_region": surface.dark_region,
        "blur_patch": surface.blur_patch,
        "erosion": form.erosion,
        "ink_mark": surface.ink_mark,
        **EVAL_DEFECTS,
    }
)
