"""The studio's figures: Plotly for HTML files, matplotlib for PNG, SVG and PDF without a browser.

Both draw the same panels in the same colours. Plain arrays and frames go in; neither torch nor, before the first
figure, a drawing library is imported.
"""

from core.figures.export import write_html
from core.figures.panels import FIGURES, NO_SHARES, ROLES, short
from core.figures.routing import routing_heatmap, similarity
from core.figures.static import routing_heatmap_static, scores_static
from core.routing.definitions import DEFINITIONS

__all__ = [
    "DEFINITIONS",
    "FIGURES",
    "NO_SHARES",
    "ROLES",
    "routing_heatmap",
    "routing_heatmap_static",
    "scores_static",
    "short",
    "similarity",
    "write_html",
]
