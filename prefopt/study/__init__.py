"""Studies: arms × seeds, controlled and resumable; comparison/ has the statistics, report/ the page and tables.

May import everything above it in the list of rooms, which ends with runs.
"""

from prefopt.study.run import run_study
from prefopt.study.spec import Arm, Hold, Range, Stage, Study, Tune, load_study

__all__ = ["Arm", "Hold", "Range", "Stage", "Study", "Tune", "load_study", "run_study"]
