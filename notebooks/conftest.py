"""The order in which the notebooks run as tests (nbmake)."""

import pytest

# These encode most. They begin first, so that no core waits for the last of them.
LONG = ("11_", "21_", "50_", "22_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long notebooks first; the others stay in reading order."""
    items.sort(key=lambda item: (*LONG, item.path.name[:3]).index(item.path.name[:3]))
