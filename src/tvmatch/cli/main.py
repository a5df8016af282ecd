"""`tvmatch COMMAND`: finds the command, and turns the errors that users can mend into one line."""

import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from tvmatch import __version__
from tvmatch.launched import launched
from tvmatch.telling import give_up, tell

# name -> (module, one line of help); modules are imported when called, so that --help is quick
COMMANDS = {
    "train": ("tvmatch.cli.train", "train a generator (handwritten digits, if you give no arguments)"),
    "sample": ("tvmatch.cli.sample", "draw pictures with a trained run"),
    "evaluate": ("tvmatch.cli.evaluate", "measure the samples of a trained run"),
    "statistics": ("tvmatch.cli.statistics", "describe a data set in the features of a network, for evaluate"),
    "encode": ("tvmatch.cli.encode", "encode pictures into latents, for models of latents"),
    "export": ("tvmatch.cli.export", "take a trained run elsewhere: plain weights, ONNX, diffusers"),
    "import-official": ("tvmatch.cli.import_official", "read a snapshot of the official implementation"),
    "demo": ("tvmatch.cli.demo", "serve a page that draws with a trained run, or write a static one"),
    "plot": ("tvmatch.cli.plot", "draw losses, norms and logits of a run: is this divergence?"),
    "ablate": ("tvmatch.cli.ablate", "compare variants of the training options, with seeds"),
    "bench": ("tvmatch.cli.bench", "measure what a training step costs on this machine"),
    "presets": ("tvmatch.cli.presets", "list the networks and their sizes"),
}
BAD_INPUT = 2  # exit code for a command line or an input that cannot work


def usage() -> str:
    """The text of `tvmatch --help`."""
    lines = [f"  {name:<15} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"tvmatch {__version__}: Terminal Velocity Matching, generators that draw in one to four network calls",
            "",
            "usage: tvmatch COMMAND [options]",
            "",
            *lines,
            "",
            "`tvmatch COMMAND --help` lists the options of a command.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 128 + signal when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # before torch is imported: CPU threads that wait by spinning for long make training several times slower as soon as
    # anything else uses a core; with this many turns an idle machine loses nothing
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else BAD_INPUT
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `tvmatch {near[0]}`?" if near else f"there are {', '.join(COMMANDS)}."
        tell(f"tvmatch: no command {name!r}; {hint}")
        return BAD_INPUT
    try:
        command: Callable[[list[str]], int] = import_module(COMMANDS[name][0]).command
        return command(rest)
    except BrokenPipeError:  # whoever read what is printed has seen enough: `tvmatch presets | head`
        give_up(sys.stdout)
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        _complain(name, error)
        return BAD_INPUT
    except RuntimeError as error:
        from tvmatch.networks.duals import TangentError
        from tvmatch.training.failures import MemoryFullError, TrainingError, memory_text, out_of_memory
        from tvmatch.training.ranks import RanksError
        from tvmatch.training.step_gradient import RecordingError

        if not isinstance(error, TangentError | TrainingError | MemoryFullError | RanksError | RecordingError):
            if not out_of_memory(error):
                raise
            _complain(name, f"{memory_text(error)}. Give a smaller --batch-size, where the command has one.")
            return 1
        _complain(name, error)
        return 1
    except KeyboardInterrupt:
        tell(f"tvmatch {name}: interrupted")
        return 130


def _complain(command: str, error: Exception | str) -> None:
    """One line on stderr, whatever the message holds; of several processes each says which it is."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        error = f"{error.filename}: {error.strerror}."  # without Python's "[Errno 2]"
    which = ""
    with contextlib.suppress(ValueError):  # bad numbers are perhaps what this is about
        rank, count = launched() or (0, 1)
        which = f" (rank {rank})" if count > 1 else ""
    tell(f"tvmatch {command}{which}: {' '.join(str(error).splitlines())}")
