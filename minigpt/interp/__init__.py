"""Looking inside the model and changing what it computes: recordings, interventions, analyses, pictures.

    from minigpt.interp import record, record_text, edit, ablate, scale, patch, steer, knock_out

The model knows nothing of this: everything is done by hooks on its modules, which are there only while a
`with` block lasts.
"""

from minigpt.interp.edit import edit
from minigpt.interp.interventions import ablate, mean_activation, patch, scale, steer
from minigpt.interp.knock_out import knock_out
from minigpt.interp.points import POINTS
from minigpt.interp.record import record, record_text
from minigpt.interp.recording import Recording

__all__ = [
    "POINTS",
    "Recording",
    "ablate",
    "edit",
    "knock_out",
    "mean_activation",
    "patch",
    "record",
    "record_text",
    "scale",
    "steer",
]
