"""Read surfaces with a layout of their own: KolektorSDD and SDD2, DAGM, magnetic tiles."""

from pathlib import Path

from .kit import Problem, Row, by_mask, by_stem, child, images, reserve, starting, with_masks


def kolektor_sdd(root: Path, problems: list[Problem]) -> list[Row]:
    """Return the rows of KolektorSDD: kosNN/PartM.jpg, with its mask PartM_label.bmp."""
    rows = []
    for files in map(by_stem, starting(root, "kos")):
        for stem, image in files.items():
            if not stem.endswith("_label"):
                mask = files.get(f"{stem}_label")
                rows += by_mask("kolektor_sdd", "test", image, mask, problems)
    return reserve(rows)


def ground_truths(root: Path) -> list[str]:
    """Return the stems of masks as in KolektorSDD2."""
    stems = [stem for split in ("train", "test") for stem in by_stem(child(root, split))]
    return [stem for stem in stems if stem.endswith("_GT")]


def ksdd2(root: Path, problems: list[Problem]) -> list[Row]:
    """Return the rows of KolektorSDD2: {train,test}/x.png, with its mask x_GT.png."""
    rows = []
    for split in ("train", "test"):
        files = by_stem(child(root, split))
        for stem, image in files.items():
            if not stem.endswith("_GT"):
                rows += by_mask("ksdd2", split, image, files.get(f"{stem}_GT"), problems)
    return rows


def dagm(root: Path, problems: list[Problem]) -> list[Row]:
    """Return the rows of DAGM 2007: Class<k>/{Train,Test}/x.PNG, masks in Label/ for defects."""
    rows = []
    for base in starting(root, "class"):
        for split in ("train", "test"):
            place = child(child(base, base.name) or base, split)  # some archives nest Class1/Class1
            labels = child(place, "label")
            masks = by_stem(labels)
            defective = _listed(labels) | set(masks)
            bad = [image for image in images(place) if f"{image.stem}_label" in defective]
            rows += with_masks(
                base.name, "defective", bad, masks, problems, split, ("_label",), labels
            )
            good = [image for image in images(place) if image not in bad]
            rows += [Row(base.name, split, 0, "good", image) for image in good]
    return rows


def _listed(labels: Path | None) -> set[str]:
    """Return the stems that Labels.txt names: masks that must be there."""
    table = labels and labels / "Labels.txt"
    if not table or not table.is_file():
        return set()
    text = table.read_text(encoding="utf-8", errors="replace")
    return {Path(word).stem for word in text.split()}


def magnetic_tile(root: Path, problems: list[Problem]) -> list[Row]:
    """Return the rows of the magnetic tiles: MT_<kind>/Imgs/x.jpg, with its mask x.png."""
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
