"""Every objective by its name, and the way to a user's own."""

import dataclasses
from pathlib import Path
from typing import Any

from prefopt.objectives.names import explained
from prefopt.objectives.online.a2c import A2C
from prefopt.objectives.online.cispo import CISPO
from prefopt.objectives.online.dapo import DAPO
from prefopt.objectives.online.drgrpo import DrGRPO
from prefopt.objectives.online.gdpo import GDPO
from prefopt.objectives.online.grpo import GRPO
from prefopt.objectives.online.gspo import GSPO
from prefopt.objectives.online.lagrangian import LagrangianPPO
from prefopt.objectives.online.nashmd import NashMD
from prefopt.objectives.online.ppo import PPO, PPOKL
from prefopt.objectives.online.reinforce import REINFORCE
from prefopt.objectives.online.reinforce_plus_plus import ReinforcePlusPlus
from prefopt.objectives.online.remax import ReMax
from prefopt.objectives.online.rloo import RLOO
from prefopt.objectives.online.spin import SPIN
from prefopt.objectives.online.xpo import XPO
from prefopt.objectives.preference.alphapo import AlphaPO
from prefopt.objectives.preference.aot import AOT, AOTUnpaired
from prefopt.objectives.preference.apo import APODown, APOZero
from prefopt.objectives.preference.bco import BCO
from prefopt.objectives.preference.betadpo import BetaDPO
from prefopt.objectives.preference.caldpo import CalDPO
from prefopt.objectives.preference.chipo import ChiPO
from prefopt.objectives.preference.cpo import CPO
from prefopt.objectives.preference.discopop import DiscoPOP
from prefopt.objectives.preference.dmpo import DMPO
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.dponll import DPONLL
from prefopt.objectives.preference.dpop import DPOP
from prefopt.objectives.preference.exo import EXO, EXOList
from prefopt.objectives.preference.fdpo import FDPO
from prefopt.objectives.preference.hinge import Hinge
from prefopt.objectives.preference.ipo import IPO, IPOMean
from prefopt.objectives.preference.kto import KTO
from prefopt.objectives.preference.lddpo import LDDPO
from prefopt.objectives.preference.lipo import LiPO
from prefopt.objectives.preference.lndpo import LNDPO
from prefopt.objectives.preference.nca import NCA, InfoNCA
from prefopt.objectives.preference.noisy_labels import CDPO, RobustDPO
from prefopt.objectives.preference.orpo import ORPO
from prefopt.objectives.preference.plackett_luce import PlackettLuceDPO
from prefopt.objectives.preference.pro import PRO
from prefopt.objectives.preference.rdpo import RDPO
from prefopt.objectives.preference.reward_aware_rpo import RewardAwareRPO
from prefopt.objectives.preference.rpo import RPO, RPODiagonal, RPOUnpaired
from prefopt.objectives.preference.rrhf import RRHF
from prefopt.objectives.preference.simpo import SimPO
from prefopt.objectives.preference.slic import SLiC
from prefopt.objectives.preference.softdpo import SoftDPO
from prefopt.objectives.preference.sppo import SPPO
from prefopt.objectives.preference.tdpo import TDPO1, TDPO2
from prefopt.objectives.preference.wpo import WPO
from prefopt.objectives.reward.bradley_terry import (
    BradleyTerry,
    MarginBradleyTerry,
    SegmentBradleyTerry,
    SoftBradleyTerry,
)
from prefopt.objectives.reward.k_wise import KWise
from prefopt.objectives.reward.plackett_luce import PlackettLuceReward
from prefopt.objectives.reward.regression import RatingRegression
from prefopt.objectives.reward.steps import StepReward
from prefopt.objectives.supervised import SFT
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given
from prefopt.support.plugins import UnknownFieldError, find, make
from prefopt.types import Needs, Objective

CATALOGUE: dict[str, type[Objective]] = {
    cls.__name__: cls
    for cls in (
        SFT,
        AlphaPO,
        AOT,
        AOTUnpaired,
        APODown,
        APOZero,
        BCO,
        BetaDPO,
        CalDPO,
        CDPO,
        ChiPO,
        CPO,
        DiscoPOP,
        DMPO,
        DPO,
        DPONLL,
        DPOP,
        EXO,
        EXOList,
        FDPO,
        Hinge,
        InfoNCA,
        IPO,
        IPOMean,
        KTO,
        LDDPO,
        LiPO,
        LNDPO,
        NCA,
        ORPO,
        PlackettLuceDPO,
        PRO,
        RDPO,
        RewardAwareRPO,
        RobustDPO,
        RPO,
        RPODiagonal,
        RPOUnpaired,
        RRHF,
        SimPO,
        SLiC,
        SoftDPO,
        SPPO,
        TDPO1,
        TDPO2,
        WPO,
        A2C,
        CISPO,
        DAPO,
        DrGRPO,
        GDPO,
        GRPO,
        GSPO,
        LagrangianPPO,
        NashMD,
        PPO,
        PPOKL,
        REINFORCE,
        ReinforcePlusPlus,
        ReMax,
        RLOO,
        SPIN,
        XPO,
        BradleyTerry,
        KWise,
        MarginBradleyTerry,
        PlackettLuceReward,
        RatingRegression,
        SegmentBradleyTerry,
        SoftBradleyTerry,
        StepReward,
    )
}
"""Every objective by the name that recipes give it."""

__all__ = [*CATALOGUE, "load_objective"]


def load_objective(name: Any, folder: Path | None = None, **fields: Any) -> Objective:
    """An objective of the catalogue, or a user's own, with its fields set.

    Args:
        name: a catalogue name ("DPO"), a path, "package.module:Class" or "file.py:Class", or a class or an objective itself.
        folder: where to look for a file first.
        fields: the hyperparameters; those left out keep their defaults, or what they are in an objective that is given.

    Raises:
        PrefoptError: an unknown name or field (with the nearest known one), a value that cannot be, or a class that is no
            objective.
    """
    name = name if isinstance(name, str) else Given(name)
    objective_class(name, folder)
    try:
        objective: Objective = make(name, fields, "objective", known=CATALOGUE, folder=folder)
    except UnknownFieldError as error:
        raise explained(error, fields[error.field]) from None
    return objective


def objective_class(name: str, folder: Path | None = None) -> Any:
    """The class behind a name that `load_objective` takes.

    Raises:
        PrefoptError: an unknown name, or a class that is not an objective.
    """
    named = find(name, "objective", known=CATALOGUE, folder=folder)
    cls = type(named) if dataclasses.is_dataclass(named) and not isinstance(named, type) else named
    _check_class(name, cls)
    return cls


def _described(value: Any) -> str:
    """What stands where an objective should, in words."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


def _check_class(name: str, cls: Any) -> None:
    faults = []
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        faults.append(f"must be a dataclass (write @dataclass(frozen=True) above it); it is {_described(cls)}")
    if isinstance(cls, type):
        missing = [repr(method) for method in ("targets", "loss") if not callable(getattr(cls, method, None))]
        if missing:
            faults.append(f"has no method {' and no '.join(missing)}; an objective has `needs`, `targets` and `loss`")
        if not isinstance(getattr(cls, "needs", None), Needs | property):
            faults.append("declares no needs; write for example `needs = Needs(completions=2, ordered=True)`")
    if faults:
        raise PrefoptError("\n".join(f"{name} {fault}" for fault in faults))
