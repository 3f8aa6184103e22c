"""What all figures share: sizes, colours, the style sheet `print.mplstyle`, the licence line.

Normal is a blue circle, anomalous an orange triangle; methods have other colours.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

STYLE = "vlmad_utils.report.print"
COLUMN, PAGE = 3.3, 6.9  # inches: one text column, the whole page
FOOT = 0.15  # inches, for the licence of images
NORMAL: dict[str, Any] = {"color": "#0173B2", "marker": "o"}
ANOMALOUS: dict[str, Any] = {"color": "#DE8F05", "marker": "^"}
# The rest of the style's cycle, and one more.
METHODS = ["#029E73", "#CC78BC", "#56B4E9", "#CA9161", "#949494", "#ECE133"]
# Low scores are nearly clear, so that the image is seen. The middle of cividis would be grey, as
# the image is.
OPACITY = 0.25 + 0.6 * np.linspace(0, 1, 256) ** 0.7
HEAT = ListedColormap(
    np.c_[plt.get_cmap("inferno")(np.linspace(0.1, 1, 256))[:, :3], OPACITY], name="heat"
)
in_style = plt.style.context(STYLE)  # as a decorator: the style holds while the function runs


def write_licence(fig: Figure, licence: str | None) -> None:
    """Write the licence of the images at the foot of a figure, if there is one."""
    if licence:
        fig.supxlabel(f"Pictures: {licence}", fontsize=5.5, color="0.35", x=0.01, ha="left")
