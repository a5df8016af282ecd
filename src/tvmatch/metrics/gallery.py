"""Pictures of an evaluation: each case's first samples as they come, and beside their nearest training pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tvmatch.data.source import Source
from tvmatch.metrics.cases import Case, Drawer
from tvmatch.metrics.features import FeatureNetwork
from tvmatch.metrics.manifold import nearest
from tvmatch.metrics.statistics import ReferenceStatistics
from tvmatch.pictures import captioned, enlarge, save_png, tile

SHOWN, COLUMNS, NEAREST = 100, 10, 8  # samples in a picture; rows with neighbours, and neighbours a row


class Gallery:
    """Writes into `folder` for one seed of the noise; neighbours only where `source` is what the reference is of."""

    def __init__(
        self,
        folder: Path,
        drawer: Drawer,
        network: FeatureNetwork,
        reference: ReferenceStatistics,
        source: Source | None,
        samples: int,
        seed: int,
    ) -> None:
        self.folder, self.drawer, self.network, self.reference = folder, drawer, network, reference
        self.count, self.rows, self.seed = min(SHOWN, samples), min(COLUMNS, samples), seed
        told = reference.provenance["fingerprint"]
        self.source = source if source is not None and source.fingerprint == told else None

    def show(self, case: Case, row: dict[str, Any], features: Tensor | None) -> None:
        """Write the pictures of a case, and the numbers of the neighbours into its row. Of a case that was measured
        before, whose `features` are not at hand (None), what is missing."""
        if case.seed != self.seed:
            return
        samples, neighbours = (self.folder / f"{kind}_{case.name}.png" for kind in ("samples", "nearest"))
        wanted = [samples] if self.source is None else [samples, neighbours]
        if features is None and all(path.is_file() for path in wanted):
            return
        pictures = self.drawer(case, range(self.count))
        if features is None:
            features = self.network(pictures[: self.rows]).cpu()
        pictures = pictures.cpu().numpy()
        side = pictures.shape[1]
        save_png(enlarge(tile(pictures, COLUMNS), 64, side), samples)
        if self.source is None:
            return
        index, distance = nearest(features[: self.rows], self.reference.features, NEAREST)
        numbers = self.reference.indices[index.numpy()]
        found = [self.source.batch(line) for line in numbers]
        row["nearest"] = {"numbers": numbers.tolist(), "distances": distance.tolist()}
        blocks = [
            ("sample", enlarge(tile(pictures[: self.rows], 1), 64, side)),
            ("nearest training pictures", enlarge(tile(np.concatenate(found), numbers.shape[1]), 64, side)),
        ]
        save_png(captioned(blocks), neighbours)
