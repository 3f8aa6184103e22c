"""The words that the embedded model is trained with: states, materials, templates, and captions composed from them.

The three words in HELD_OUT_SYNONYMS never occur in training: they test whether the text side generalises.
"""

import itertools

from vlmad_procedural import generate

HELD_OUT_SYNONYMS = {"normal": ("pristine {}",), "anomalous": ("ruined {}", "marred {}")}

NORMAL_STATES = (
    "{}",
    "normal {}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
    "good {}",
    "intact {}",
    "undamaged {}",
    "clean {}",
    "spotless {}",
    "defect-free {}",
    "faultless {}",
    "{} in perfect condition",
    "{} with no visible defects",
    "{} that passed inspection",
    "new {}",
    "healthy {}",
    "regular {}",
    "{} with a uniform surface",
    "{} as it should be",
    "unbroken {}",
    "immaculate {}",
    "{} free of defects",
    "{} of good quality",
    "acceptable {}",
    "{} with nothing wrong",
    "fine {}",
    "ordinary {}",
    "unharmed {}",
    "unspoiled {}",
    "{} in mint condition",
    "{} in order",
)
ANOMALOUS_STATES = (
    "damaged {}",
    "broken {}",
    "defective {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
    "anomalous {}",
    "abnormal {}",
    "faulty {}",
    "flawed {}",
    "{} with a visible fault",
    "imperfect {}",
    "blemished {}",
    "bad {}",
    "{} with an anomaly",
    "{} that failed inspection",
    "spoiled {}",
    "impaired {}",
    "{} in bad condition",
    "{} with something wrong",
    "rejected {}",
    "{} of poor quality",
    "{} with an irregularity",
    "injured {}",
    "{} with a local defect",
    "deteriorated {}",
    "{} with surface damage",
    "disfigured {}",
    "{} with a blemish",
    "wrecked {}",
    "unacceptable {}",
    "harmed {}",
    "{} that is not normal",
    "corrupted {}",
    "{} out of order",
)
TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "an image of a {}.",
    "a picture of one {}.",
    "this is a {}.",
    "an industrial photo of a {}.",
    "a grey-scale photo of the {}.",
    "a macro photo of the {}.",
)
OBJECT_WORDS = (
    "object",
    "surface",
    "part",
    "product",
    "item",
    "material",
    "workpiece",
    "component",
    "sample",
    "texture",
)
OTHER_NOUNS = (  # nouns of no training image: the state must be read from the text whatever the noun
    "solar cell",
    "textile",
    "cookie",
    "ball screw",
    "printed circuit board",
    "hazelnut",
    "pill",
    "transistor",
    "candle",
    "cashew",
    "macaroni",
    "toothbrush",
    "steel sheet",
    "rail",
    "casting",
    "fabric",
    "engine",
    "wafer",
    "lens",
    "tyre",
    "wheel",
    "door",
    "pipe",
    "chip",
    "pump",
    "magnet",
    "glass",
    "plate",
    "tube",
    "bracket",
)


def nouns(family):
    """English nouns of a procedural family, the first being its object name."""
    return list(generate.FAMILIES[family].nouns)


def defect_phrases(defect):
    """Prompt phrases of a defect type, each with a place for the noun: "cracked {}" or "{} with a crack"."""
    return [
        w
        if "{}" in w
        else "{} " + w
        if w.startswith(("with", "without", "that", "in ", "of "))
        else w + " {}"
        for w in generate.DEFECT_TYPES[defect].words
    ]


def fill(template, state, noun):
    """Put a noun into a state and the state into a template."""
    return template.format(state.format(noun))


def all_states(defects=()):
    """(normal, anomalous) state phrases; those of the named defect types belong to the anomalous ones."""
    return list(NORMAL_STATES), [
        *ANOMALOUS_STATES,
        *itertools.chain.from_iterable(map(defect_phrases, defects)),
    ]
