"""Pictures that several families share: pure functions over plain data, each returning a plotly figure.

| picture | shows |
|---|---|
| `token_strip` | a text coloured by a number, token by token |
| `cache_map` | which positions each layer's cache holds, step by step |
| `layer_grid` | a number for each layer and column |
| `token_tree` | drafts, subtasks: a tree with states |
| `timeline` | who is busy when |
| `image_board` | small pictures with captions |
| `heatmap_marginals` | a heat map with the mean of its rows and columns |
| `pareto_front` | two costs against each other, with intervals |

Each has a title, units, a summary sentence (`figure_summary`) and a table (`figure_table`), and shows text as text:
tokens with HTML in them are escaped.
"""

from .boards import image_board
from .fronts import pareto_front
from .maps import cache_map, heatmap_marginals, layer_grid
from .strips import timeline, token_strip
from .trees import token_tree

__all__ = ["cache_map", "heatmap_marginals", "image_board", "layer_grid", "pareto_front", "timeline", "token_strip",
           "token_tree"]  # fmt: skip
