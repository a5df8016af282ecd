"""The data that a run was trained on, opened again to compare its samples with."""

from pathlib import Path

from tvmatch.data.opening import open_source
from tvmatch.data.source import Source
from tvmatch.training.checkpoint import read_header
from tvmatch.training.run_folder import read_config
from tvmatch.training.trained import TrainedRun


class OtherDataError(ValueError):
    """What lies where a run's data lay is something else; the message says so, without a remedy."""


def open_training_data(run: Path, trained: TrainedRun) -> tuple[Source, str | None]:
    """The run's data, and what a reader of figures must know of it. Pictures that were cropped at random in training
    come with the crop of their centres: figures must not change from one time to the next.

    `OtherDataError` if the data are not those of training, `DataError` if they cannot be opened.
    """
    config = read_config(run)
    source = open_source(config.data, config.image_size, config.strict, config.crop)
    if source.shape != trained.flow.network.data_shape:
        source.close()
        raise OtherDataError(f"{config.data} now holds pictures {source.shape}; {run} was trained on others")
    if source.fingerprint != read_header(trained.checkpoint)["data"]:
        source.close()
        raise OtherDataError(f"data {config.data!r} is not what {run} was trained on")
    if config.crop == "centre":
        return source, None
    source.close()
    return (
        open_source(config.data, config.image_size, config.strict),
        f"{run} was trained on random crops (--crop {config.crop}), and is compared with the centres of the pictures.",
    )
