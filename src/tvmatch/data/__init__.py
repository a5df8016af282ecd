"""Data sets, and the order in which a training run sees them."""

from tvmatch.data.arrays import npz_source, source_from_arrays
from tvmatch.data.folder import folder_source
from tvmatch.data.in_memory import InMemorySource
from tvmatch.data.opening import open_pictures, open_source
from tvmatch.data.prefetch import Prefetcher
from tvmatch.data.source import DataError, Source, to_network_range, to_pictures, to_unit_range
from tvmatch.data.stream import ShuffledStream
from tvmatch.data.streamed import StreamedSource

__all__ = [
    "DataError",
    "InMemorySource",
    "Prefetcher",
    "ShuffledStream",
    "Source",
    "StreamedSource",
    "folder_source",
    "npz_source",
    "open_pictures",
    "open_source",
    "source_from_arrays",
    "to_network_range",
    "to_pictures",
    "to_unit_range",
]
