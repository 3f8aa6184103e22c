"""What importing a room must not load: libraries that only some of its functions need."""

import subprocess
import sys

import pytest
from fixtures import pages

LATER = {
    "vlmad_procedural": "sklearn skimage pandas torch matplotlib",
    "vlmad_utils.data": "sklearn matplotlib seaborn umap onnx open_clip timm transformers",
    "vlmad_utils.features": "sklearn matplotlib seaborn umap onnx onnxruntime distributed",
    "vlmad_utils.study": "seaborn umap onnx onnxruntime distributed",
}


@pytest.mark.slow  # each is a new process
@pytest.mark.parametrize("room", LATER)
def test_a_room_imports_no_library_before_it_is_needed(room):
    code = f"import sys, {room}; print(*(set({LATER[room].split()}) & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pages.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
