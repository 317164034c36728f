"""Studies: arms × seeds, controlled, resumable, and what they come to."""

from prefopt.study.run import run_study
from prefopt.study.spec import Arm, Hold, Range, Stage, Study, Tune, load_study

__all__ = ["Arm", "Hold", "Range", "Stage", "Study", "Tune", "load_study", "run_study"]
