"""Surfaces with a layout of their own: KolektorSDD and SDD2, DAGM, magnetic tiles."""

from pathlib import Path

from .kit import Row, by_mask, by_stem, child, images, reserve, starting, with_masks


def kolektor_sdd(root, problems):
    rows = []
    for files in map(by_stem, starting(root, "kos")):
        for stem, image in files.items():
            if not stem.endswith("_label"):
                rows += by_mask("kolektor_sdd", "test", image, files.get(f"{stem}_label"), problems)
    return reserve(rows)


def ground_truths(root):
    return [
        stem
        for split in ("train", "test")
        for stem in by_stem(child(root, split))
        if stem.endswith("_GT")
    ]


def ksdd2(root, problems):
    rows = []
    for split in ("train", "test"):
        files = by_stem(child(root, split))
        for stem, image in files.items():
            if not stem.endswith("_GT"):
                rows += by_mask("ksdd2", split, image, files.get(f"{stem}_GT"), problems)
    return rows


def dagm(root, problems):
    rows = []
    for base in starting(root, "class"):
        for split in ("train", "test"):
            place = child(child(base, base.name) or base, split)  # some archives nest Class1/Class1
            labels = child(place, "label")
            files, listed = by_stem(labels), labels and labels / "Labels.txt"
            words = (
                listed.read_text(encoding="utf-8", errors="replace").split()
                if listed and listed.is_file()
                else []
            )
            defective = {Path(word).stem for word in words} | set(files)
            bad = [image for image in images(place) if f"{image.stem}_label" in defective]
            rows += with_masks(
                base.name, "defective", bad, files, problems, split, ("_label",), labels
            )
            rows += [
                Row(base.name, split, 0, "good", image)
                for image in images(place)
                if image not in bad
            ]
    return rows


def magnetic_tile(root, problems):
    rows = []
    for base in starting(root, "mt_"):
        place, kind = child(base, "imgs") or base, base.name[3:].lower()
        pictures = [p for p in images(place) if p.suffix.lower() in (".jpg", ".jpeg")]
        masks = {p.stem: p for p in images(place) if p.suffix.lower() == ".png"}
        if kind == "free":
            rows += [Row("magnetic_tile", "test", 0, "good", image) for image in pictures]
        else:
            rows += with_masks(
                "magnetic_tile", kind, pictures, masks, problems, suffixes=("",), where=place
            )
    return reserve(rows)
