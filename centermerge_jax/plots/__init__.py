"""Figures from results, as pure functions of the JSON objects that commands write.

    comparison = json.loads(Path("comparison.json").read_text())
    cm.plots.save(cm.plots.gap_bars(comparison), "gaps.svg")

Every function returns a `matplotlib.figure.Figure` and touches nothing else: no global
state, no window. Colours can be told apart with any kind of colour blindness and have
different markers or line styles beside them.
"""

from centermerge_jax.plots.analysis import interference as interference
from centermerge_jax.plots.analysis import panels_shown as panels_shown
from centermerge_jax.plots.analysis import spectra as spectra
from centermerge_jax.plots.analysis import spectrum_lines as spectrum_lines
from centermerge_jax.plots.analysis import task_map as task_map
from centermerge_jax.plots.analysis import trade_off as trade_off
from centermerge_jax.plots.comparison import accuracy_bars as accuracy_bars
from centermerge_jax.plots.comparison import gap_bars as gap_bars
from centermerge_jax.plots.comparison import is_reference as is_reference
from centermerge_jax.plots.cost import cost_against_accuracy as cost_against_accuracy
from centermerge_jax.plots.ranks import accuracy_over_rank as accuracy_over_rank
from centermerge_jax.plots.ranks import grid_of_points as grid_of_points
from centermerge_jax.plots.ranks import rank_curve as rank_curve
from centermerge_jax.plots.ranks import scale_rank_map as scale_rank_map
from centermerge_jax.plots.style import save as save
from centermerge_jax.plots.style import svg as svg
