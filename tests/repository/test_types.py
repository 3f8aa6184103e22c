"""Style that no linter checks: type hints of all that is public, short lines, plain docstrings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vlmad_utils", "vlmad_procedural", "embedded_model", "benchmarks", "docs", "notebooks")
MODULES = {
    path.relative_to(ROOT).as_posix(): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
TESTS = {p.relative_to(ROOT).as_posix(): p for p in sorted((ROOT / "tests").rglob("*.py"))}
COLUMNS = 100
# first words of a description, where an instruction is due
NOT_VERBS = set(
    "a all an and any array as at best both by each every everything features for from how if in "
    "it its like of on one path same such that the there these this those two what whatever when "
    "whether where which who with".split()
)
VERBS = set("bring embed exceed feed need proceed seed shed".split())  # though they end so


def public(tree):
    """Functions of a module and methods of its classes whose names are public, with the class."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name[0] != "_":
            yield None, node
        elif isinstance(node, ast.ClassDef) and node.name[0] != "_":
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (
                    method.name[0] != "_" or method.name == "__init__"
                ):
                    yield node, method


def decorators(node):
    """Names of the decorators of a function or class, without arguments and modules."""
    texts = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]
    return {text.rpartition(".")[2] for text in texts}


def unhinted(tree):
    """What lacks a hint: one line of text each."""
    found = []
    for owner, node in public(tree):
        where = f"{owner.name + '.' if owner else ''}{node.name}, line {node.lineno}"
        a = node.args
        first = owner is not None and "staticmethod" not in decorators(node)  # self or cls
        named = [*a.posonlyargs, *a.args][first:] + a.kwonlyargs
        named += [star for star in (a.vararg, a.kwarg) if star]
        found += [f"{where}: {arg.arg}" for arg in named if arg.annotation is None]
        if node.returns is None and node.name != "__init__":
            found.append(f"{where}: what it returns")
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and "dataclass" in decorators(node):
            found += [
                f"{node.name}, line {part.lineno}: {ast.unparse(part)}"
                for part in node.body
                if isinstance(part, ast.Assign)  # without a hint it is no field at all
            ]
    return found


def not_plain(tree):
    """Docstrings of public functions whose first line is no short instruction: one line each."""
    found = []
    for _, node in public(tree):
        text = ast.get_docstring(node)
        if node.name == "__init__" or text is None or decorators(node) & {"property", "setter"}:
            continue  # a property is read like a field: its docstring describes it
        line = text.splitlines()[0]
        word = re.match(r"\w*", line).group()
        describes = word.lower() in NOT_VERBS or (
            re.search(r"([^su]s|ed|ing)$", word) and word.lower() not in VERBS
        )
        if not word[:1].isupper() or describes or not line.endswith("."):
            found.append(f"{node.name}, line {node.lineno}: {line}")
    return found


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_all_that_is_public_has_hints(name):
    found = unhinted(parse(MODULES[name]))
    assert not found, f"{name} lacks {len(found)} hints:\n" + "\n".join(found)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_short_instructions(name):
    found = not_plain(parse(MODULES[name]))
    text = f'{name}: begin {len(found)} docstrings as in "Return the mask as booleans.":\n'
    assert not found, text + "\n".join(found)


@pytest.mark.parametrize("name", [*MODULES, *TESTS])
def test_lines_are_short(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [f"{name}:{i}" for i, line in enumerate(lines, 1) if len(line) > COLUMNS]
    assert not found, f"{len(found)} lines exceed {COLUMNS} columns: {', '.join(found)}"


@pytest.mark.parametrize(
    "text, missing",
    [
        ("def f(x): pass", 2),
        ("def f(x: int) -> int: pass", 0),
        ("def f(*a, k=1) -> int: pass", 2),
        ("def _f(x): pass", 0),
        ("class C:\n def __init__(self, x): pass\n def m(self) -> int: pass", 1),
        ("class C:\n @staticmethod\n def m(x) -> int: pass", 1),
        ("@dataclass(frozen=True)\nclass C:\n a: int = 1\n b = 2", 1),
    ],
)
def test_the_check_of_hints_counts(text, missing):
    assert len(unhinted(ast.parse(text))) == missing


@pytest.mark.parametrize(
    "line, good",
    [
        ("Return the mask as booleans.", True),
        ("Pass a value on.", True),
        ("Focus on a part.", True),
        ("Embed the pixels.", True),
        ("Feed the tower.", True),
        ("Returns the mask.", False),
        ("The mask as booleans.", False),
        ("return the mask.", False),
        ("Return the mask", False),
        ("Reading files.", False),
        ("Whether it is there.", False),
    ],
)
def test_the_check_of_docstrings_knows_an_instruction(line, good):
    assert bool(not_plain(ast.parse(f'def f():\n    """{line}"""'))) != good
