import sys

from tvmatch.data import progress


def run(monkeypatch, capsys, terminal: bool, patience: float) -> str:
    monkeypatch.setattr(progress, "PATIENCE", patience)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(progress.show_progress(range(5), "Decoding pictures")) == [0, 1, 2, 3, 4]
    return capsys.readouterr().err


def test_a_bar_is_shown_only_for_long_work_on_a_terminal(monkeypatch, capsys):
    assert "Decoding pictures" in run(monkeypatch, capsys, terminal=True, patience=-1)
    assert run(monkeypatch, capsys, terminal=True, patience=60) == ""
    assert run(monkeypatch, capsys, terminal=False, patience=-1) == ""
