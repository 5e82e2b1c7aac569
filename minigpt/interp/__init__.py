"""Looking inside the model and changing what it computes: recordings, interventions, analyses, pictures.

    from minigpt.interp import record, record_text, edit, ablate, scale, patch, steer, knock_out

The model knows nothing of this: everything is done by hooks on its modules, which are there only while a
`with` block lasts. `minigpt.interp.page` makes a page of a run. Pictures are in `minigpt.interp.plots`, which
needs matplotlib (the extra `plot`).
"""

from minigpt.interp.attribution import Attribution, direct_attribution
from minigpt.interp.circuits import (
    composition_baseline,
    composition_score,
    copying_score,
    ov_circuit,
    qk_circuit,
)
from minigpt.interp.edit import edit
from minigpt.interp.gradients import TokenAttribution, input_x_gradient, integrated_gradients
from minigpt.interp.heads import HeadStatistics, head_statistics, rollout, value_weighted
from minigpt.interp.interventions import ablate, mean_activation, patch, scale, steer
from minigpt.interp.knock_out import knock_out
from minigpt.interp.lens import LensReading, best_in_any_layer, logit_lens
from minigpt.interp.patching import (
    Sweep,
    ablate_heads,
    attribution_patching,
    logit_difference,
    patch_heads,
    patch_positions,
)
from minigpt.interp.path_patching import path_patching
from minigpt.interp.points import POINTS
from minigpt.interp.record import record, record_text
from minigpt.interp.recording import Recording
from minigpt.interp.series import Series, series
from minigpt.interp.surprisal import surprisal
from minigpt.interp.tuned_lens import TunedLens, fit_tuned_lens

__all__ = [
    "POINTS",
    "Attribution",
    "HeadStatistics",
    "LensReading",
    "Recording",
    "Series",
    "Sweep",
    "TokenAttribution",
    "TunedLens",
    "ablate",
    "ablate_heads",
    "attribution_patching",
    "best_in_any_layer",
    "composition_baseline",
    "composition_score",
    "copying_score",
    "direct_attribution",
    "edit",
    "fit_tuned_lens",
    "head_statistics",
    "input_x_gradient",
    "integrated_gradients",
    "knock_out",
    "logit_difference",
    "logit_lens",
    "mean_activation",
    "ov_circuit",
    "patch",
    "patch_heads",
    "patch_positions",
    "path_patching",
    "qk_circuit",
    "record",
    "record_text",
    "rollout",
    "scale",
    "series",
    "steer",
    "surprisal",
    "value_weighted",
]
