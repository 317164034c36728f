"""Variables of the environment that change numbers: the recipe wins, or the run says what did and records it.

Read in accelerate 1.15, torch 2.13 and transformers 5.14, and in the manuals of cuBLAS, cuDNN, oneDNN, MKL and NCCL.
"""

import os
from collections.abc import Mapping

from prefopt.recipe import Wandb

OVERRULED = (
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_DYNAMO_BACKEND",
)
"""What accelerate's launcher sets, and a run gives to accelerate itself, so that they change nothing."""

ARITHMETIC = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCH_LINEAR_FLATTEN_3D",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TORCH_CUDNN_USE_HEURISTIC_MODE_B",
    "TORCH_ROCM_FA_PREFER_CK",
    "TORCH_MKLDNN_MATMUL_MIN_DIM",
    "TORCH_MKLDNN_MATMUL_MIN_SIZE",
    "DISABLE_ADDMM_CUDA_LT",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_EMULATE_SINGLE_PRECISION",
    "CUBLAS_EMULATION_STRATEGY",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DISABLE_FAST_MM",
    "OPENBLAS_CORETYPE",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "PYTORCH_MPS_FAST_MATH",
    "PYTORCH_MPS_PREFER_METAL",
    "XLA_USE_BF16",
    "XLA_DOWNCAST_BF16",
    "ACCELERATE_DOWNCAST_BF16",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_TORCH_DEVICE",
    "TRANSFORMERS_DISABLE_DEEPGEMM_LINEAR",
    "TRANSFORMERS_SDPA_FORCE_GQA",
    "FLASH_ATTENTION_DETERMINISTIC",
    "USE_HUB_KERNELS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NCCL_NVLS_ENABLE",
)
"""What changes the kernels or the order of sums, and so the last digits or, as TF32 does, the first ones.

What says where models and data are read from (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE) is not here: manifest.json has fingerprints of
the models and the data themselves.
"""

WANDB_RUN = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM")
"""Which run of W&B is gone on with: wandb-id.txt in the run folder says so, since all runs of a study see the same environment."""

WANDB_PLACE = ("WANDB_PROJECT", "WANDB_NAME", "WANDB_TAGS", "WANDB_DIR")
"""Where a run is logged and as what: the recipe says so."""

WANDB_OBEYED = ("WANDB_MODE", "WANDB_ENTITY", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE")
"""What W&B takes from the environment where the recipe leaves it open; manifest.json records it."""

WANDB_LEADS = ("WANDB_SWEEP_ID", "WANDB_LAUNCH")
"""Set by W&B's own agents, which give the id and the project of the one run that they start."""


def given(names: tuple[str, ...] = ARITHMETIC, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those of these variables that are set, with their values."""
    return {name: environment[name] for name in names if environment.get(name)}


def said(tracked: Wandb | None = None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What a person should know of the environment of a run: a sentence for each kind of variable that is set.

    Args:
        tracked: the recipe's `track.wandb`.
        environment: the variables.
    """
    lines = []
    launched = {
        name: value for name, value in given(OVERRULED, environment).items() if value.lower() not in ("1", "no")
    }
    if launched:
        lines.append(f"{_listed(launched)} in the environment changes nothing: the recipe's `train` says how to train")
    if arithmetic := given(ARITHMETIC, environment):
        lines.append(f"{_listed(arithmetic)} in the environment changes the arithmetic; manifest.json records it")
    if tracked is not None and not given(WANDB_LEADS, environment):
        if run := given(WANDB_RUN, environment):
            lines.append(
                f"{_listed(run)} in the environment changes nothing: each run has an id of its own in W&B, in the run folder's "
                "wandb-id.txt, and a resume goes on with it"
            )
        if place := given(WANDB_PLACE, environment):
            lines.append(
                f"{_listed(place)} in the environment changes nothing: the recipe's `track.wandb` says where to log"
            )
    return lines


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
