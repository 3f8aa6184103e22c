"""The book of notebooks: what is kept of the outputs of a run."""

import nbformat
import publish as book
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def stream(text, name="stderr"):
    return new_output("stream", name=name, text=text)


def test_tidy_drops_progress_bars_and_keeps_what_is_said_in_one_piece():
    bar = [stream(text) for text in ("\r  0%|  | 0/2", "\r 50%|# | 1/2", "\r100%|##| 2/2", "\n")]
    said = [stream("done\n", "stdout"), stream("more\n", "stdout")]
    cells = [
        new_code_cell("work()", outputs=[*bar, *said]),
        new_code_cell("warn()", outputs=[stream("UserWarning: 5% of all|none\n")]),
    ]
    tidied = book.tidy(new_notebook(cells=cells))
    assert [(o.name, o.text) for o in tidied.cells[0].outputs] == [("stdout", "done\nmore\n")]
    assert len(tidied.cells[1].outputs) == 1


def test_tidy_keeps_other_outputs_and_their_order():
    picture = new_output("display_data", data={"text/plain": "figure"})
    cell = new_code_cell(
        "draw()", outputs=[stream("a\n", "stdout"), picture, stream("b\n", "stdout")]
    )
    outputs = book.tidy(new_notebook(cells=[cell])).cells[0].outputs
    assert [o.output_type for o in outputs] == ["stream", "display_data", "stream"]


def test_tidy_sets_the_stamp_and_drops_traces_of_the_run():
    cells = [
        new_markdown_cell("# T"),
        new_code_cell("1", metadata={"execution": {"iopub.execute_input": "2026"}}),
    ]
    notebook = book.tidy(
        new_notebook(cells=cells, metadata={"papermill": {"path": "x"}, "widgets": {}})
    )
    assert not notebook.cells[1].metadata
    assert notebook.metadata.vlmad.source == book.source_stamp(notebook)
    assert not {"papermill", "widgets"} & set(notebook.metadata)


def test_link_renews_the_navigation_and_nothing_else(tmp_path):
    for name in ("10_a", "20_b"):
        cells = [
            nbformat.v4.new_markdown_cell("# T\n\nP."),
            nbformat.v4.new_markdown_cell(book.NAVIGATION + "\nold"),
            nbformat.v4.new_code_cell(
                "1", execution_count=1, outputs=[nbformat.v4.new_output("stream", text="1\n")]
            ),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    book.link(book.notebooks(tmp_path))
    first, last = (
        nbformat.read(tmp_path / f"{name}.ipynb", as_version=4) for name in ("10_a", "20_b")
    )
    assert "20_b.ipynb" in first.cells[1].source and "old" not in first.cells[1].source
    assert "10_a.ipynb" in last.cells[1].source
    assert first.cells[2].outputs[0].text == "1\n" and first.cells[2].execution_count == 1
