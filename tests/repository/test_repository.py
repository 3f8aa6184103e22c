"""The repository: one place for versions, a README that fits, notebooks that are fit to read."""

import importlib.util
import re
import subprocess
import tomllib
from types import SimpleNamespace

import nbformat
import publish as book
import pytest
import yaml

import vlmad_utils
from vlmad_procedural import DEFECT_TYPES, FAMILIES

SOLUTIONS = sorted((book.NOTEBOOKS / "solutions").glob("*.ipynb"))
PROJECT = tomllib.loads((book.ROOT / "pyproject.toml").read_text())["project"]


def tracked():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=book.ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [
        book.ROOT / name
        for name in done.stdout.split("\0")
        if name and (book.ROOT / name).is_file()
    ]


def found_in_texts(pattern):
    """{file: first hit} of a pattern in the text files of the repository."""
    hits = {}
    for path in tracked():
        if path.suffix not in (".png", ".pdf", ".safetensors", ".npz"):
            text = path.read_text(encoding="utf-8", errors="ignore")
            hits[path.relative_to(book.ROOT).as_posix()] = pattern.search(text)
    return {name: hit.group(0) for name, hit in hits.items() if hit}


def test_long_notebooks_begin_first_and_the_others_keep_their_order():
    spec = importlib.util.spec_from_file_location("order", book.NOTEBOOKS / "conftest.py")
    order = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(order)
    items = [SimpleNamespace(path=path) for path in [*book.notebooks(), *SOLUTIONS]]
    order.pytest_collection_modifyitems(items)
    names = [item.path.name for item in items]
    assert tuple(name[:3] for name in names[:4]) == order.LONG
    assert names[4:] == sorted(names[4:])


def test_environment_only_points_at_pyproject():
    environment = yaml.safe_load((book.ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-e .[" + ",".join(PROJECT["optional-dependencies"]) + "]"]
    python = next(
        d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python")
    )
    assert python == "python" + PROJECT["requires-python"]


def test_every_dependency_has_a_lower_bound_and_no_upper():
    wanted = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", d) for d in wanted)


def test_versions_agree():
    cited = yaml.safe_load((book.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (book.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, date = re.search(r"(?m)^## \[([\d.]+)\] - (\S+)$", changes).groups()
    assert vlmad_utils.__version__ == cited["version"] == newest
    assert str(cited.get("date-released", "unreleased")) == date


def test_readme_table_is_up_to_date():
    assert book.readme() == (book.ROOT / "README.md").read_text(encoding="utf-8"), (
        "run make notebooks"
    )


def test_no_machine_path_in_the_repository():
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp|work)/[\w.-]+/[\w./-]+")
    assert not found_in_texts(pattern)


def test_no_host_of_a_package_registry_or_vulnerability_database():
    names = ("pypi org", "pypi python org", "pythonhosted org", "osv dev", "anaconda org")
    names += ("npmjs org", "npmjs com", "crates io", "nvd nist gov")  # with spaces: not a hit here
    pattern = re.compile("|".join(name.replace(" ", r"\.") for name in names), re.IGNORECASE)
    assert not found_in_texts(pattern), "name the package, version, file and hash instead"


@pytest.mark.parametrize("path", book.notebooks(), ids=lambda p: p.stem)
def test_notebook_is_fit_to_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert path.stat().st_size <= 2**20
    assert all(c.execution_count for c in code), "a cell was not executed"
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), (
        "not executed in order from a fresh kernel"
    )
    assert not any(o.output_type == "error" for c in code for o in c.outputs)
    assert notebook.metadata.vlmad.source == book.source_stamp(notebook), (
        "outputs are of another source: make notebooks"
    )
    assert "widgets" not in notebook.metadata
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    title, promise = book.headline(notebook)
    assert title and promise.endswith(".")
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for part in (
        "You will learn",
        "You need",
        "> **Scope",
        book.NAVIGATION,
        "Takeaways",
        "Exercises",
        "References",
    ):
        assert part.lower() in text.lower(), f"{path.stem} has no {part!r}"
    assert book.navigation(path, book.notebooks()) in text, "navigation is stale: make notebooks"


def test_every_exercise_has_a_solution_and_every_solution_an_exercise():
    asked = set()
    for path in book.notebooks():
        text = "\n".join(
            c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
        )
        part = re.search(r"(?ms)^## Exercises$(.*?)(?=^## |\Z)", text)
        items = re.findall(r"(?m)^(\d+)\. \*(.+?)\*", part[1]) if part else []
        asked |= {(f"{path.stem[:2]}.{number}", title.rstrip(".?")) for number, title in items}
    solved = [
        heading
        for path in SOLUTIONS
        for c in nbformat.read(path, as_version=4).cells
        if c.cell_type == "markdown"
        for heading in re.findall(r"(?m)^## (\d\d\.\d+) (.+)$", c.source)
    ]
    assert sorted(asked) == sorted((number, title.rstrip(".?")) for number, title in solved)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_are_fit_to_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert path.stat().st_size <= 2**20
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), (
        "not executed in order from a fresh kernel"
    )
    assert not any(
        o.output_type == "error" or o.get("name") == "stderr" for c in code for o in c.outputs
    )
    assert notebook.metadata.vlmad.source == book.source_stamp(notebook), (
        "outputs are of another source"
    )
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    drawn = [c for c in code if c.source.endswith("\nfig")]
    assert all(any("image/jpeg" in o.get("data", {}) for o in c.outputs) for c in drawn), (
        "a picture was not kept"
    )
    title, promise = book.headline(notebook)
    assert title.startswith("Solutions, session") and promise.endswith(".")
    assert (
        "> **Scope" in "\n".join(c.source for c in notebook.cells)
        and "widgets" not in notebook.metadata
    )


def test_figures_and_captions_are_complete_both_ways():
    captions = yaml.safe_load((book.ROOT / "figures/captions.yaml").read_text())
    pictures = {p.stem for p in (book.ROOT / "figures").glob("*.png")}
    assert pictures == set(captions) == {p.stem for p in (book.ROOT / "figures").glob("*.pdf")}


def test_pictures_of_data_carry_their_licence():
    captions, seen = yaml.safe_load((book.ROOT / "figures/captions.yaml").read_text()), 0
    for path in book.notebooks():
        if path.name.startswith("60_"):  # the reader's own pictures
            continue
        for cell in nbformat.read(path, as_version=4).cells:
            if re.search(r"report\.(overlay|contact_sheet)\(", cell.source):
                for made, name in re.findall(
                    r'report\.save_figure\(fig, (f?)"(\w+)', cell.source
                ):  # of an f-string the beginning
                    assert any(
                        entry.get("licence")
                        for key, entry in captions.items()
                        if key == name or made and key.startswith(name)
                    ), f"{path.stem}: {name} names no licence"
                    seen += 1
    assert seen > 15


def test_readme_counts_the_generator_right():
    assert f"{len(FAMILIES)} products, {len(DEFECT_TYPES)} kinds of defect" in (
        book.ROOT / "README.md"
    ).read_text(encoding="utf-8")
