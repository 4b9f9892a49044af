"""The order of the datasets in an epoch: well mixed, evenly spread, and found for any block from its number alone.

(1) an epoch of dataset quotas q_0, q_1, ... (blocks each) is cut into cells of about ``CELL`` blocks;
(2) before cell j come floor((j * q_d + phase_d) / cells) blocks of dataset d, so that each dataset is spread evenly
    over the epoch; the phases, seeded numbers below the number of cells, keep rare datasets from all coming at the
    same place;
(3) inside a cell the datasets are shuffled; each dataset's blocks keep their order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from piccolo_st.batches.permutation import Permutation
from piccolo_st.hashing import mix

CELL = 512


class Interleaving:
    """Which dataset each block of an epoch comes from.

    Args:
        quotas: blocks an epoch takes from each dataset: (datasets,), not all 0.
        seed: of the order.
    """

    def __init__(self, quotas: NDArray[np.int64], seed: int) -> None:
        self.quotas, self.seed = quotas, seed
        self.blocks = int(quotas.sum())
        self.cells = -(-self.blocks // CELL)
        # The cell asked for last, and its epoch's phases: shortcuts, never a state.
        self._phases: tuple[int, NDArray[np.int64]] | None = None
        self._cell: tuple[tuple[int, int], int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def __call__(self, epoch: int, block: int) -> tuple[int, int]:
        """The dataset of a block of an epoch, and how many blocks of that dataset came before it in the epoch."""
        # Rounding down moves a cell's beginning by at most a block for each dataset.
        cell = min(block * self.cells // self.blocks, self.cells - 1)
        while self._before(epoch, cell).sum() > block:
            cell -= 1
        while self._before(epoch, cell + 1).sum() <= block:
            cell += 1
        if self._cell is None or self._cell[0] != (epoch, cell):
            self._cell = ((epoch, cell), *self._shuffled(epoch, cell))
        _, first, datasets, indices = self._cell
        return int(datasets[block - first]), int(indices[block - first])

    def _before(self, epoch: int, cell: int) -> NDArray[np.int64]:
        """Step (2): blocks of each dataset in the cells before ``cell``: (datasets,)."""
        if self._phases is None or self._phases[0] != epoch:
            words = [mix(self.seed, 1, epoch, dataset) % self.cells for dataset in range(len(self.quotas))]
            self._phases = epoch, np.array(words, np.int64)
        return (cell * self.quotas + self._phases[1]) // self.cells

    def _shuffled(self, epoch: int, cell: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """Step (3): a cell's first block, and for each of its blocks the dataset and its number in that dataset."""
        before = self._before(epoch, cell)
        counts = self._before(epoch, cell + 1) - before
        total = int(counts.sum())
        datasets = np.repeat(np.arange(len(counts)), counts)
        in_order = np.arange(total) - np.repeat(np.cumsum(counts) - counts - before, counts)
        datasets = datasets[Permutation(total, mix(self.seed, 2, epoch, cell))(np.arange(total))]
        indices = np.empty_like(in_order)
        indices[np.argsort(datasets, kind="stable")] = in_order
        return int(before.sum()), datasets, indices
