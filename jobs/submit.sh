#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
Run jobs/train.py, with the code and conf/ of this checkout, as a job of a running Ray cluster.

    jobs/submit.sh [--address URL] [--id ID] [--no-wait] KEY=VALUE...
    jobs/submit.sh --address http://head:8265 experiment=ring_lite model.path=/shared/model \
        hydra.run.dir=/shared/runs/first

  --address URL   of the cluster's dashboard; else RAY_API_SERVER_ADDRESS or RAY_ADDRESS is asked
  --id ID         name the job (default: ring-ray- and the time)
  --no-wait       return once the job is submitted

The job's log is followed until its end; Ctrl-C ends that, not the job: `ray job logs --follow ID` goes on, and
`ray job stop ID` ends the job as Ctrl-C would end a run in a terminal. Results go to hydra.run.dir, or else to
~/ring_ray/outputs/EXPERIMENT where the job's driver runs, on the cluster's first node; the log says where.

Exits with the run's status: 0, 2 for a mistake in what was asked for, 1 for another failure; 143 for a job that was
stopped.
END
}

mistake() {
    echo "error: $1" >&2
    exit 2
}

address=${RAY_API_SERVER_ADDRESS:-${RAY_ADDRESS:-}}
id=ring-ray-$(date +%Y%m%d-%H%M%S)-$$
wait=true
while [ $# -gt 0 ]; do
    case "$1" in
    --help | -h)
        usage
        exit
        ;;
    --address | --id)
        [ $# -gt 1 ] || mistake "$1 needs a value"
        if [ "$1" = --address ]; then address=$2; else id=$2; fi
        shift
        ;;
    --no-wait) wait=false ;;
    *) break ;;
    esac
    shift
done
[ -n "$address" ] || mistake "which cluster? Give --address http://HEAD:8265, or set RAY_ADDRESS"
export RAY_API_SERVER_ADDRESS=$address # Ray's commands heed it more than their own --address

cd "$(dirname "$0")/.."
# The copy that Ray uploads is without .git; W&B takes the commit from here. The remote's address may hold a password.
commit=()
if git rev-parse HEAD >/dev/null 2>&1; then
    commit=("WANDB_GIT_COMMIT=$(git rev-parse HEAD)")
    remote=$(git remote get-url origin 2>/dev/null | sed -E 's#//[^/@]*@#//#' || true)
    if [ -n "$remote" ]; then commit+=("WANDB_GIT_REMOTE_URL=$remote"); fi
fi
ray job submit --submission-id "$id" --no-wait --runtime-env jobs/runtime_env.yaml --working-dir . \
    -- env "${commit[@]}" python jobs/train.py "$@"
if [ "$wait" = false ]; then exit; fi
ray job logs --follow "$id" || echo "the log is cut off; waiting for the job to end" >&2
# Ray's commands tell success from failure, but not the run's own status.
python - "$id" <<'END'
import sys
import time
from ray.job_submission import JobStatus, JobSubmissionClient

client = JobSubmissionClient()
while not (job := client.get_job_info(sys.argv[1])).status.is_terminal():
    time.sleep(2)
if job.status == JobStatus.STOPPED:
    sys.exit(143)
sys.exit(1 if job.driver_exit_code is None else job.driver_exit_code)
END
