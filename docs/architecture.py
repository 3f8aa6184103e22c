"""Draw docs/architecture.md from the imports; ``python docs/architecture.py`` renews the page.

Only the text of the modules is read (ast), so the page needs no library and no model.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
ROOMS = {  # a room may import only rooms listed above it
    "paths": ("folders, whole-file writing, hashes", "everything else"),
    "store": ("arrays on disk or in memory, under a kind and a key", "what the arrays are"),
    "data": ("an index of every data set, images, masks, fetching, corruptions", "models"),
    "models": ("image and text towers, windows, prompts and prototypes", "methods"),
    "features": ("encode once into the store, read back", "methods"),
    "methods": ("`Scores`, one module per paradigm: pure functions", "data sets, plots, pandas"),
    "evaluation": ("metrics, intervals, paired differences, thresholds", "models, pandas, plots"),
    "study": ("the grid (data, method, shots, seed), its methods, the command", "plots"),
    "report": ("figures, tables, the inspection sheet", "how scores were made"),
}
PACKAGES = {
    "vlmad_procedural": "images with exact masks, drawn by rules; imports nothing of vlmad_utils",
    "embedded_model": "what trains and measures the embedded model",
    "benchmarks": "time and memory against other programs",
}


def modules() -> dict[str, Path]:
    """List the modules of all packages as {dotted name: file}."""
    found = {}
    for package in ("vlmad_utils", *PACKAGES):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def names(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the absolute name of all that a module imports, inside functions too.

    Parameters
    ----------
    tree : syntax tree of the module
    package : dotted name of the package that holds it, which relative imports start from
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def imports() -> dict[str, set[str]]:
    """Return {module: modules of the repository that it imports}."""
    known, found = modules(), {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = set()
        for target in names(ast.parse(path.read_text(encoding="utf-8")), package):
            while target and target not in known:  # a function: the module that holds it
                target = target.rpartition(".")[0]
            found[name] |= {target} - {"", name}
    return found


@functools.cache
def libraries() -> dict[str, set[str]]:
    """Return {room: top names of all libraries that its modules import}."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tops = {target.split(".")[0] for target in names(tree, name)}
        found.setdefault(room(name), set()).update(tops - {"vlmad_utils", *PACKAGES})
    return found


def room(module: str) -> str:
    """Return the room of a module of ``vlmad_utils``, else its package."""
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == "vlmad_utils" and rest else package


def arrows() -> set[tuple[str, str]]:
    """Return the arrows (room, room that it imports) between different rooms and packages."""
    pairs = {(room(name), room(target)) for name, all_ in imports().items() for target in all_}
    return {(one, other) for one, other in pairs if one != other}


def drawing() -> str:
    """Draw the arrows between rooms and packages as a mermaid graph, without those to ``paths``."""
    pairs = sorted(pair for pair in arrows() if pair[1] != "paths")
    lines = ["```mermaid", "graph BT", "  subgraph vlmad_utils", "    direction BT"]
    lines += [f"    {name}" for name in ROOMS if name != "paths"]
    lines += ["  end", *(f"  {one} --> {other}" for one, other in pairs), "```"]
    return "\n".join(lines)


def room_table() -> str:
    """Write the table of the rooms: what each holds, does not know, and imports."""
    rows = ["| room | holds | knows nothing of | imports |", "|---|---|---|---|"]
    about = {f"`{name}`": texts for name, texts in ROOMS.items()}
    about |= {f"`{name}/` (package)": (text, "") for name, text in PACKAGES.items()}
    for (title, (holds, ignores)), name in zip(about.items(), [*ROOMS, *PACKAGES]):
        used = ", ".join(sorted(other for one, other in arrows() if one == name)) or "nothing"
        rows.append(f"| {title} | {holds} | {ignores} | {used} |")
    return "\n".join(rows)


def module_table() -> str:
    """Write the table of the modules with the first line of each docstring."""
    rows = ["| module | about |", "|---|---|"]
    for name, path in modules().items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = text.split("\n\n")[0].replace("\n", " ").replace("|", r"\|")
        rows.append(f"| [`{name}`](../{path.relative_to(ROOT).as_posix()}) | {first} |")
    return "\n".join(rows)


def page() -> str:
    """Return the page with its generated parts renewed.

    Raises
    ------
    ValueError when a mark is missing.
    """
    text = PAGE.read_text(encoding="utf-8")
    for name, make in {"drawing": drawing, "rooms": room_table, "modules": module_table}.items():
        begin, end = f"<!-- {name}: python docs/architecture.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{PAGE.name} has no place for its {name}: put {begin} and {end}")
        new = f"{begin}\n{make()}\n{end}"
        text = pattern.sub(lambda _, new=new: new, text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
