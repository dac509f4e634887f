"""k-means of embeddings, by scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def k_means(points: Tensor, clusters: int, *, seed: int, restarts: int = 10) -> tuple[Tensor, int]:
    """Centroids (clusters, width) in float32, the means of their points, and how many clusters there are.

    ``points`` (n, width). k-means++ starts, the best of ``restarts``; equal for equal seeds. Where fewer points differ
    than there are clusters, each of them is one, and the centroids that are left over are zero.
    """
    from sklearn.cluster import KMeans

    values = points.detach().double().cpu().numpy()
    known = min(clusters, len(np.unique(values.round(9), axis=0)))
    fitted = KMeans(known, n_init=restarts, random_state=seed).fit(values)
    found = torch.zeros(clusters, values.shape[1], dtype=torch.float32, device=points.device)
    found[:known] = torch.from_numpy(fitted.cluster_centers_).to(found)
    return found, known
