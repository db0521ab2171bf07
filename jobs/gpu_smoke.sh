#!/usr/bin/env bash
# All that needs a GPU, on one: tests in bfloat16 (CUDA IPC, sleep and wake, checksums), tokens per second generated and
# trained with MFU and peak memory, and the default job with policy, reference and rollout taking turns on the device,
# its memory by phase at the end. The first argument is where that run goes (default outputs/gpu-smoke).
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-outputs/gpu-smoke}

python - <<'EOF'
import sys, torch
if not torch.cuda.is_available():
    sys.exit("no GPU that torch can use: run this where `nvidia-smi` shows one, with the CUDA build of torch")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
EOF

python -m pytest tests/gpu
python -m tests.benchmarks.bench_rollout --device cuda
python -m tests.benchmarks.bench_train --device cuda
python -m tests.benchmarks.bench_train --device cuda --activation-checkpointing
python jobs/train.py cluster=colocated model.dtype=bfloat16 rollout.gpu_memory_fraction=0.5 sync.verify_weights=true \
    cluster.policy.gpus=0.4 cluster.reference.gpus=0.2 cluster.rollout.gpus=0.4 hydra.run.dir="$output"
python - "$output" <<'EOF'
import json, sys
last = json.loads(open(f"{sys.argv[1]}/metrics.jsonl").readlines()[-1])
for name, held in last.items():
    if name.startswith("memory/"):
        print(f"{name:<28}{held:8.2f}")
EOF
