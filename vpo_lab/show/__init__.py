"""Turn arrays into pictures. Nothing here knows a task or a file."""

from vpo_lab.show.budgets import (
    budget_curves,
    budget_grid,
    diversity,
    forest,
    headline,
    paired_differences,
    position_quality,
    tokens_curve,
    worlds,
)
from vpo_lab.show.explorer import Explorer
from vpo_lab.show.live import inline_pictures
from vpo_lab.show.mechanism import TOY_ANSWERS, TOY_CHAINS, mechanism
from vpo_lab.show.style import (
    LOG_LABEL,
    METHOD_LABEL,
    METHOD_STYLE,
    OKABE_ITO,
    STYLE,
    candidate_color,
    method_label,
    method_style,
    spread,
)
from vpo_lab.show.training import collapse, curves_over_seeds, smooth, training_curves
from vpo_lab.show.vectors import (
    advantage_heatmap,
    attainment,
    fronts,
    group_with_signal,
    judged_group,
    pareto,
    pareto_3d,
    reward_vectors,
    simplex_scatter,
    simplex_winners,
    simplex_xy,
    upper_envelope,
    winner_regions,
    wins_somewhere,
)

inline_pictures()

__all__ = [
    "LOG_LABEL",
    "METHOD_LABEL",
    "METHOD_STYLE",
    "OKABE_ITO",
    "STYLE",
    "TOY_ANSWERS",
    "TOY_CHAINS",
    "Explorer",
    "advantage_heatmap",
    "attainment",
    "budget_curves",
    "budget_grid",
    "candidate_color",
    "collapse",
    "curves_over_seeds",
    "diversity",
    "forest",
    "fronts",
    "group_with_signal",
    "headline",
    "judged_group",
    "mechanism",
    "method_label",
    "method_style",
    "paired_differences",
    "pareto",
    "pareto_3d",
    "position_quality",
    "reward_vectors",
    "simplex_scatter",
    "simplex_winners",
    "simplex_xy",
    "smooth",
    "spread",
    "tokens_curve",
    "training_curves",
    "upper_envelope",
    "winner_regions",
    "wins_somewhere",
    "worlds",
]
