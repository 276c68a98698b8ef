"""Assignment: which sighting follows which, as a whole most likely; and how sure each link is."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

from decode.postprocess.link.pairs import Pairs
from decode.postprocess.link.sightings import Booleans, Floats, Integers

__all__ = ["best_links", "link_probabilities"]

DENSE = 200
"""most ends of a cluster that is solved as a dense matrix"""
MESSAGES = 30
"""rounds of belief propagation"""
CERTAIN = 34.0
"""largest gain that counts in them: beyond, sums lose what competes"""


def best_links(pairs: Pairs, gain: Floats, n: int) -> Booleans:
    """The links of the largest total gain, of which each sighting has at most one ahead and one
    behind.

    This is a linear assignment of ends to starts (Jaqaman et al., Nature Methods 5, 695, 2008),
    solved exactly in each cluster of links that compete.

    Args:
        pairs: that may be linked.
        gain: (m,) log-likelihood ratio of a link to none; only those above 0 are made.
        n: number of sightings.

    Returns:
        (m,) which pairs are links.

    Example:
        >>> pairs = Pairs(
        ...     first=np.array([0, 0, 1]), second=np.array([2, 3, 2]), lag=np.array([1, 1, 1])
        ... )
        >>> best_links(pairs, np.array([5.0, 3.0, 4.0]), 4).tolist()
        [False, True, True]
    """
    chosen = np.zeros(len(pairs), np.bool_)
    good = np.flatnonzero(gain > 0)
    first, second = pairs.first[good], pairs.second[good]
    ahead, behind = np.bincount(first, minlength=n), np.bincount(second, minlength=n)
    alone = (ahead[first] == 1) & (behind[second] == 1)
    chosen[good[alone]] = True
    rest = good[~alone]
    if not len(rest):
        return chosen
    # ends and starts are different nodes: a chain of links is no cluster
    graph = sparse.coo_array(
        (np.ones(len(rest)), (pairs.first[rest], n + pairs.second[rest])), shape=(2 * n, 2 * n)
    )
    _, label = connected_components(graph, directed=False)
    cluster = label[pairs.first[rest]]
    order = np.argsort(cluster, kind="stable")
    parts = np.split(rest[order], np.flatnonzero(np.diff(cluster[order])) + 1)
    for part in parts:
        chosen[part[_matched(pairs.first[part], pairs.second[part], gain[part])]] = True
    return chosen


def _matched(first: Integers, second: Integers, gain: Floats) -> Integers:
    """The pairs of the best assignment of one cluster."""
    _, row = np.unique(first, return_inverse=True)
    _, column = np.unique(second, return_inverse=True)
    n, m = int(row.max()) + 1, int(column.max()) + 1
    if max(n, m) <= DENSE:
        table = np.zeros((n, m))
        number = np.full((n, m), -1)
        table[row, column], number[row, column] = gain, np.arange(len(gain))
        found = number[linear_sum_assignment(table, maximize=True)]
        return found[found >= 0]
    # each end may stay without a start: a column of its own, which gains nothing
    most = float(gain.max()) + 1.0
    cost = np.concatenate([most - gain, np.full(n, most)])
    rows = np.concatenate([row, np.arange(n)])
    columns = np.concatenate([column, m + np.arange(n)])
    matrix = sparse.csr_array((cost, (rows, columns)), shape=(n, m + n))
    ends, starts = min_weight_full_bipartite_matching(matrix)
    taken = np.full(n, -1)
    taken[ends] = starts
    return np.flatnonzero(taken[row] == column)


def link_probabilities(pairs: Pairs, gain: Floats, n: int) -> Floats:
    """Posterior probability of each pair that it is a link, among all assignments.

    Sum-product on the graph of ends and starts (Williams and Lau, IEEE Trans. Aerosp. Electron.
    Syst. 50, 2942, 2014): exact where there are no loops, and close to the ratio of permanents
    where there are.

    Args:
        pairs, gain, n: as for `best_links`; all pairs that may be links.

    Returns:
        (m,) probabilities.

    Example:
        >>> pair = Pairs(first=np.array([0]), second=np.array([1]), lag=np.array([1]))
        >>> link_probabilities(pair, np.log([9.0]), 2).round(3).tolist()
        [0.9]
    """
    weight = np.exp(np.minimum(gain, CERTAIN))
    free = np.ones(len(pairs))
    for _ in range(MESSAGES):
        total = np.bincount(pairs.first, weight * free, minlength=n)[pairs.first]
        out = weight / (1 + np.maximum(total - weight * free, 0.0))
        came = np.bincount(pairs.second, out, minlength=n)[pairs.second]
        before, free = free, 1 / (1 + np.maximum(came - out, 0.0))
        if len(free) == 0 or np.abs(free - before).max() < 1e-6:
            break
    total = np.bincount(pairs.first, weight * free, minlength=n)[pairs.first]
    values: Floats = weight * free / (1 + total)
    return values
