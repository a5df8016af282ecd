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


def test_a_stderr_that_cannot_be_written_ends_no_work(monkeypatch):
    """As after `tvmatch encode ... 2>&1 | tee log` whose tee has died."""
    monkeypatch.setattr(progress, "PATIENCE", -1)
    monkeypatch.setattr(progress, "BETWEEN_LINES", -1)
    for terminal in (True, False):
        with open("/dev/full", "w") as full, monkeypatch.context() as patch:
            patch.setattr(full, "isatty", lambda terminal=terminal: terminal, raising=False)
            patch.setattr(sys, "stderr", full)
            assert list(progress.show_progress(range(3), "Decoding pictures")) == [0, 1, 2]
            with progress.counting("Encoding", 3) as done:
                for _ in range(3):
                    done(1, 1)
