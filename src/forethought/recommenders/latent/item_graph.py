"""Which items go together, by the users they share: Swing scores, and each item's strongest neighbours."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import sparse

from forethought.data.dataset import Dataset

SMOOTHING = 1.0  # α
ENTRIES = 2**22  # of a sparse matrix that are held at a time, beyond what one user needs


def swing(bought: sparse.csr_array, entries: int = ENTRIES) -> sparse.csr_array:
    """Swing scores (Yang et al. 2020, arXiv 2010.05525) with a damping of the second item's popularity (ManCAR).

    ``s(i → j) = |U_j|^-1/2 · Σ_{u < v both in U_i ∩ U_j} w_u w_v / (α + |I_u ∩ I_v|)``, with ``w_u = |I_u|^-1/2`` and
    α = 1: two users who share few items tell more by those they share, and users of many items tell less. Two items
    are connected where two users share both. Exact; time grows with the pairs of users that share two items or more.

    Args:
        bought: float64 ``[U, N]``, 1 where a user has had an item, else empty.
        entries: of the matrices that are held at a time.

    Returns:
        float64 ``[N, N]``; the diagonal is empty.
    """
    items = bought.shape[1]
    lengths, popularity = np.diff(bought.indptr), np.asarray(bought.sum(axis=0))
    by_item = bought.T.tocsr()
    # of each user, an upper bound on the entries of all other users who share an item
    cost = np.minimum(bought @ (by_item @ lengths), len(bought.data)).astype(np.int64) + 1
    block = np.cumsum(cost) // entries
    scores = sparse.csr_array((items, items))
    for start, stop in _runs(block):
        shared = sparse.coo_array(bought[start:stop] @ by_item)
        one, other, count = shared.row + start, shared.col, shared.data
        pair = (one < other) & (count >= 2)
        one, other, count = one[pair], other[pair], count[pair]
        if not len(one):
            continue
        both = bought[one].multiply(bought[other]).tocsr()  # a row a pair of users: the items they share
        weight = (lengths[one].astype(np.float64) * lengths[other]) ** -0.5 / (SMOOTHING + count)
        scores = scores + both.T @ (sparse.diags_array(weight) @ both)
    damping = np.zeros(items)
    np.power(popularity, -0.5, out=damping, where=popularity > 0)
    damped = sparse.coo_array(scores @ sparse.diags_array(damping))
    apart = damped.row != damped.col
    kept = (damped.data[apart], (damped.row[apart], damped.col[apart]))
    return sparse.csr_array(sparse.coo_array(kept, shape=(items, items)))


def _runs(block: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where each run of equal numbers starts and stops."""
    edges = np.flatnonzero(np.diff(block)) + 1
    return list(pairwise([0, *edges.tolist(), len(block)])) if len(block) else []


def item_graph(dataset: Dataset, neighbours: int) -> npt.NDArray[np.int64]:
    """The strongest Swing neighbours of every item.

    Args:
        dataset: only its training part is read.
        neighbours: k, the most that are kept of an item.

    Returns:
        int64 ``[N + 1, k]``, items 1..N, the strongest first and of equals the lower item; 0 where there are fewer.
    """
    owner = np.repeat(np.arange(dataset.num_users), dataset.train_stop - dataset.sequences.offsets[:-1])
    items = dataset.train_items().astype(np.int64) - 1
    ones = np.ones(len(items))
    bought = sparse.coo_array((ones, (owner, items)), shape=(dataset.num_users, dataset.num_items)).tocsr()
    bought.data[:] = 1  # a repeat tells nothing more
    scores = swing(bought)
    rows = np.repeat(np.arange(dataset.num_items), np.diff(scores.indptr))
    order = np.lexsort((scores.indices, -scores.data, rows))
    place = np.arange(len(order)) - scores.indptr[rows]
    kept = place < neighbours
    graph = np.zeros((dataset.num_items + 1, neighbours), dtype=np.int64)
    graph[rows[kept] + 1, place[kept]] = scores.indices[order][kept] + 1
    return graph
