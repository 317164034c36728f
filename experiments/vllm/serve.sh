#!/usr/bin/env bash
# Serves a model for runs and tests on one core, by the environment that `make vllm` made, until it is stopped.
#   bash experiments/vllm/serve.sh MODEL PORT [further arguments of `vllm serve`]
# CORE is the core's number (1), VLLM the environment (.vllm).
set -euo pipefail
environment=$(cd "${VLLM:-$(dirname "$0")/../../.vllm}" && pwd)
export VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=True VLLM_NO_USAGE_STATS=1
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
export LD_PRELOAD=$environment/lib/libiomp5.so  # which vLLM asks for; it comes with the package
exec taskset -c "${CORE:-1}" "$environment/bin/vllm" serve "$1" --host 127.0.0.1 --port "$2" --enforce-eager \
    --logprobs-mode processed_logprobs --enable-lora --max-lora-rank 32 "${@:3}"
