"""The studio's figures: Plotly for pages and HTML files, matplotlib for PNG, SVG and PDF without a browser.

Both draw the same panels in the same colours. Plain arrays and frames go in; neither torch nor, before the first
figure, a drawing library is imported.
"""

from core.figures.curves import loss_curves
from core.figures.export import write_html
from core.figures.panels import FIGURES, NO_SHARES, ROLES, short
from core.figures.routing import routing_heatmap, similarity, task_similarity
from core.figures.scores import score_against_parameters, scores_figure
from core.figures.static import routing_heatmap_static, scores_static
from core.routing.definitions import DEFINITIONS

__all__ = [
    "DEFINITIONS",
    "FIGURES",
    "NO_SHARES",
    "ROLES",
    "loss_curves",
    "routing_heatmap",
    "routing_heatmap_static",
    "score_against_parameters",
    "scores_figure",
    "scores_static",
    "short",
    "similarity",
    "task_similarity",
    "write_html",
]
