#!/usr/bin/env bash
# One run on nodes that Slurm lends: sbatch --nodes=2 jobs/slurm.sh KEY=VALUE...
# Submit it in the checkout, with the environment of the nodes' Python active; the checkout, the model and hydra.run.dir
# are on a file system that all nodes share. `scancel --batch --signal=TERM JOB` ends a run as Ctrl-C would.
#SBATCH --job-name=ring_ray
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --no-requeue
#SBATCH --signal=B:TERM@300
#SBATCH --output=slurm-%j.log
set -euo pipefail

RAY_ADDRESS=$(hostname):$((20000 + SLURM_JOB_ID % 10000)) # this script runs on the first node
export RAY_AUTH_MODE=token # the job's own secret: other users of the network can't reach its Ray
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_ADDRESS RAY_AUTH_TOKEN

step=(srun --overlap --cpu-bind=none) # Ray shares out all of a node's cores itself
start=(ray start --block --disable-usage-stats)
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" \
    "${start[@]}" --head --port="${RAY_ADDRESS#*:}" --include-dashboard=false &
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" \
        "${start[@]}" --address="$RAY_ADDRESS" &
fi

python - "$SLURM_JOB_NUM_NODES" <<'END'
import sys, time
import ray

wanted, deadline = int(sys.argv[1]), time.monotonic() + 300
while True:
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        alive = sum(node["Alive"] for node in ray.nodes())
    except ConnectionError:
        alive = 0
    if alive >= wanted:
        break
    if time.monotonic() > deadline:
        sys.exit(f"error: {alive} of {wanted} nodes joined the Ray cluster within 5 minutes")
    time.sleep(2)
END

# In this shell's place, so that Slurm's signal before the time is up reaches the run. Slurm then ends the Ray nodes.
exec python jobs/train.py "$@"
