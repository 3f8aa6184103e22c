"""Show how far a run is."""

from typing import Any, Self

from tqdm import tqdm


class Bar:
    """Show images with rate and remaining time; nothing where there is nothing to do.

    Parameters
    ----------
    total : number of images, None where nobody knows
    """

    def __init__(self, total: int | None, label: str, show: bool) -> None:
        self.total, self.label, self.show = total, label, show
        self._bar: tqdm | None = None

    def start(self) -> None:
        """Show it, if it is not yet there."""
        if self._bar is None:
            # without progress nothing; else TQDM_DISABLE decides
            quiet: dict[str, Any] = {} if self.show else {"disable": True}
            self._bar = tqdm(total=self.total, desc=self.label, unit="image", **quiet)

    def leave_out(self) -> None:
        """Count one image less."""
        self.total = None if self.total is None else self.total - 1
        if self._bar is not None:
            self._bar.total = self.total

    def update(self, n: int) -> None:
        """Count n images as done."""
        if self._bar is not None:
            self._bar.update(n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
