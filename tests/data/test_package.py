"""What an import of the package leaves behind."""

import subprocess
import sys

KERNEL = """
import sys, types, warnings

class Kernel:
    config = {"IPKernelApp": {}}  # what older versions of tqdm look for

sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = Kernel
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
sys.modules["ipywidgets"] = None
warnings.simplefilter("always")
filters = list(warnings.filters)
import vlmad_utils
assert warnings.filters == filters, warnings.filters
import tqdm.auto
"""


def test_in_a_notebook_no_warning_with_a_path_and_no_filter_left():
    """As in a kernel without ipywidgets, where the first import of tqdm.auto complains."""
    done = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True)
    assert done.returncode == 0 and "IProgress" not in done.stderr, done.stderr[-2000:]
