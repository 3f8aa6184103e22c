"""The products and faults of the generator: their roles, their words for prompts, and what suits what.

Roles "train" and "eval" share neither a product nor a fault.
"""

from typing import NamedTuple

from .objects import EVAL_OBJECTS, OBJECT_NOUNS, OBJECTS
from .textures import TEXTURES
from .textures_eval import EVAL_TEXTURES


class Family(NamedTuple):
    """A product: ``domain`` "textures" or "objects", ``role`` "train" or "eval", ``nouns`` for prompts."""

    domain: str
    role: str
    nouns: tuple


class Defect(NamedTuple):
    """A fault: ``role``, ``words`` for prompts ("a {noun} {words}"), usual ``area`` (low, high) share."""

    role: str
    words: tuple
    area: tuple


_TEXTURE_NOUNS = {
    "carpet": ("carpet", "rug", "carpet pile"),
    "grid": ("grid", "lattice", "metal grid"),
    "corduroy": ("corduroy", "ribbed fabric"),
    "knit": ("knitwear", "knitted fabric", "jersey"),
    "perforated_sheet": ("perforated sheet", "perforated metal", "punched plate"),
    "printed_pattern": ("printed pattern", "printed fabric", "wrapping paper"),
    "circuit_pattern": ("printed circuit board", "circuit board", "circuit pattern"),
    "tread_plate": ("tread plate", "checker plate", "embossed sheet"),
    "granules": ("granules", "pellets", "beads"),
    "die_grid": ("wafer", "chip array", "module grid"),
    "stone": ("stone", "granite", "marble"),
    "paper": ("paper", "cardboard"),
    "concrete": ("concrete", "cement surface"),
    "terrazzo": ("terrazzo", "terrazzo floor"),
    "polycrystal": ("solar cell", "polycrystalline plate", "crystalline wafer"),
    "barred_plate": ("solar cell", "plate with bars", "silicon wafer"),
    "felt": ("felt", "nonwoven fabric"),
    "cork": ("cork", "cork board", "chipboard"),
    "foam": ("foam", "sponge"),
    "plaster": ("plaster", "plastered wall"),
    "cast_metal": ("cast metal", "steel surface", "iron casting"),
    "hammered_metal": ("hammered metal", "hammered sheet"),
    "ceramic_glaze": ("ceramic glaze", "glazed ceramic", "enamel"),
    "asphalt": ("asphalt", "road surface", "sandpaper"),
    "bread_crust": ("bread crust", "biscuit", "baked crust"),
    "fur": ("fur", "bristles", "fibres"),
    "plastic": ("plastic", "plastic surface", "plastic sheet"),
    "gradient": ("surface", "sheet", "film"),
    "photo": ("surface", "object", "image"),
    "weave": ("woven fabric", "cloth"),
    "leather": ("leather", "hide"),
    "wood": ("wood", "wooden board"),
    "tile": ("tile", "tiled wall"),
    "mesh": ("wire mesh", "netting"),
    "brushed_metal": ("brushed metal", "brushed steel"),
}

FAMILIES = {
    name: Family("textures", "eval" if name in EVAL_TEXTURES else "train", _TEXTURE_NOUNS[name])
    for name in TEXTURES
} | {
    name: Family("objects", "eval" if name in EVAL_OBJECTS else "train", tuple(OBJECT_NOUNS[name]))
    for name in OBJECTS
}

DEFECT_TYPES = {
    "crack": Defect(
        "train",
        ("cracked", "with a crack", "with a fracture", "with fine cracks"),
        (0.001, 0.015),
    ),
    "cut": Defect(
        "train",
        ("cut", "with a cut", "with a slit", "slashed"),
        (0.0015, 0.02),
    ),
    "contamination": Defect(
        "train",
        ("contaminated", "with contamination", "with dirt particles", "with dust"),
        (0.001, 0.04),
    ),
    "foreign_patch": Defect(
        "train",
        ("with a foreign object", "with a foreign piece on it", "with a patch of another material"),
        (0.003, 0.08),
    ),
    "discolouration": Defect(
        "train",
        ("discoloured", "with a discoloured area", "with wrong colour", "with a colour fault"),
        (0.003, 0.1),
    ),
    "burn": Defect(
        "train",
        ("burnt", "with a burn mark", "scorched", "charred"),
        (0.002, 0.08),
    ),
    "pit": Defect(
        "train",
        ("pitted", "with pits", "with pores", "with corrosion pits"),
        (0.001, 0.03),
    ),
    "chip": Defect(
        "train",
        ("chipped", "with a chip", "with a piece broken off", "with a broken edge"),
        (0.002, 0.06),
    ),
    "smear": Defect(
        "train",
        ("smeared", "with a smear", "with smudges", "with oil on it"),
        (0.004, 0.1),
    ),
    "fold": Defect(
        "train",
        ("folded", "with a wrinkle", "with a crease", "with a fold"),
        (0.004, 0.05),
    ),
    "displaced_texture": Defect(
        "train",
        (
            "with a distorted pattern",
            "with a structural defect",
            "with a displaced area",
            "misaligned",
        ),
        (0.006, 0.1),
    ),
    "dark_region": Defect(
        "train",
        (
            "with a dark region",
            "with a dark area",
            "with uneven brightness",
            "with an inactive area",
        ),
        (0.01, 0.25),
    ),
    "blur_patch": Defect(
        "train",
        ("worn", "with a worn area", "with a blurred area", "with missing texture"),
        (0.006, 0.1),
    ),
    "erosion": Defect(
        "train",
        ("eroded", "with missing structure", "with broken lines", "with an open or a short"),
        (0.002, 0.06),
    ),
    "ink_mark": Defect(
        "train",
        ("with an ink mark", "with a pen mark", "scribbled on", "with a marker line"),
        (0.002, 0.03),
    ),
    "missing_part": Defect(
        "train",
        ("with a missing part", "incomplete", "with a component missing"),
        (0.0, 1.0),
    ),
    "scratch": Defect(
        "eval",
        ("scratched", "with a scratch", "with scratches"),
        (0.001, 0.012),
    ),
    "hole": Defect(
        "eval",
        ("with a hole", "perforated", "punctured"),
        (0.002, 0.03),
    ),
    "stain": Defect(
        "eval",
        ("stained", "with a stain", "with a spot"),
        (0.004, 0.06),
    ),
    "thread": Defect(
        "eval",
        ("with a loose thread", "with a hair on it", "with a fibre on it"),
        (0.002, 0.015),
    ),
    "dent": Defect(
        "eval",
        ("dented", "with a dent", "with a bump"),
        (0.004, 0.05),
    ),
    "misplaced_part": Defect(
        "eval",
        ("with a misplaced part", "misassembled", "with a part in the wrong place"),
        (0.0, 1.0),
    ),
}
PART_FAULTS = ("missing_part", "misplaced_part")  # drawn by the object itself

_NO_STRUCTURE = {
    "displaced_texture",
    "blur_patch",
    "erosion",
}  # say nothing on a surface without texture
_RANDOM = (
    "stone",
    "concrete",
    "terrazzo",
    "cork",
    "felt",
    "plaster",
    "foam",
    "cast_metal",
)  # shifts do not show
_WITHOUT = {
    **dict.fromkeys(("gradient", "plastic", "ceramic_glaze"), _NO_STRUCTURE),
    **dict.fromkeys(_RANDOM, {"displaced_texture"}),
    "granules": {"displaced_texture", "cut", "fold", "chip"},
    "asphalt": {"displaced_texture", "fold"},
    "fur": {"crack", "pit", "chip"},
    "weave": {"scratch", "dent"},
    "mesh": {"scratch", "dent"},
    "tile": {"dent"},
}


def defects_of(family, role=None):
    """Names of the faults that make sense on ``family`` and have ``role`` (default: the family's own)."""
    role = role or FAMILIES[family].role
    barred = set(_WITHOUT.get(family, ())) | (set() if family in OBJECTS else set(PART_FAULTS))
    return tuple(
        name for name, defect in DEFECT_TYPES.items() if defect.role == role and name not in barred
    )
