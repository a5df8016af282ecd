"""Data sets, and the order in which a training run sees them."""

from tvmatch.data.arrays import npz_source, source_from_arrays
from tvmatch.data.folder import folder_source
from tvmatch.data.in_memory import InMemorySource
from tvmatch.data.prefetch import Prefetcher
from tvmatch.data.source import DataError, Source, open_source, to_pictures, to_unit_range
from tvmatch.data.stream import ShuffledStream

__all__ = [
    "DataError",
    "InMemorySource",
    "Prefetcher",
    "ShuffledStream",
    "Source",
    "folder_source",
    "npz_source",
    "open_source",
    "source_from_arrays",
    "to_pictures",
    "to_unit_range",
]
