"""Tables of the study and published results."""

import pandas as pd
import pytest

from vlmad_utils import report


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMAD_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def test_a_table_comes_back_with_six_digits(results):
    frame = pd.DataFrame({"method": ["WinCLIP"], "value": [0.123456789]})
    assert report.save_table(frame, "99_test") is frame
    assert report.load_table("99_test").to_dict("list") == {
        "method": ["WinCLIP"],
        "value": [0.123457],
    }
    assert (results / "99_test.csv").read_bytes() == b"method,value\nWinCLIP,0.123457\n"


def test_a_missing_table_names_what_makes_it(results):
    with pytest.raises(FileNotFoundError, match="notebook whose name begins with 98"):
        report.load_table("98_other")
    with pytest.raises(FileNotFoundError, match="run make bench first"):
        report.load_table("bench")


def test_an_empty_table_is_an_error_and_no_file(results):
    with pytest.raises(ValueError, match="is empty"):
        report.save_table(pd.DataFrame({"x": []}), "99_test")
    assert not results.exists()


def test_published_results_are_selected_and_say_what_there_is():
    found = report.published(method=["WinCLIP", "WinCLIP+"], dataset="MVTec-AD", category="mean")
    assert set(found["method"]) == {"WinCLIP", "WinCLIP+"} and found["source"].notna().all()
    assert set(found["dataset"]) == {"MVTec-AD"} and list(found.index) == list(range(len(found)))
    with pytest.raises(ValueError, match="here it takes .*I-AUROC"):
        report.published(method="WinCLIP", metric="image_auroc")
    with pytest.raises(ValueError, match="no column 'backbone'; found method, setting"):
        report.published(backbone="x")


def test_quoted_results_are_text_in_counting_order(tmp_path, monkeypatch):
    rows = [("16-shot", "MVTec-AD", 95.0), ("2-shot", "MVTec-AD", 94.44), ("2-shot", "VisA", 84)]
    table = pd.DataFrame(rows, columns=["setting", "dataset", "value"])
    table.to_csv(tmp_path / "published.csv", index=False)
    monkeypatch.setattr(report.tables, "_published_file", lambda: tmp_path / "published.csv")
    wide = report.quote("setting", "dataset")
    assert list(wide.index) == ["2-shot", "16-shot"]
    assert wide.to_numpy().tolist() == [["94.4", "84.0"], ["95.0", ""]]
