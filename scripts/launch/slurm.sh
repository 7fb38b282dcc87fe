#!/usr/bin/env bash
# Trains under Slurm, one task a GPU; a run that is stopped at its time limit saves and goes back into the queue.
#
#   sbatch --nodes=4 [OPTION OF sbatch …] scripts/launch/slurm.sh ARGUMENTS OF train.py
#   DRY_RUN=1 bash scripts/launch/slurm.sh ARGUMENTS OF train.py        # prints the command of each task and runs nothing
#
# Start it in the checkout, on a file system that all nodes share, after `source scripts/_venv.sh; ensure_venv
# requirements.txt` and `.venv/bin/pip install "jax[cuda13]==0.10.2"`. JAX learns from Slurm which task it is in, and
# takes one GPU for each task; so the numbers of GPUs and of tasks a node must be the same.
#SBATCH --job-name=lattice_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

fail() { echo "slurm.sh: $*" >&2; exit 2; }

if [ "${1:-}" = --help ]; then
  sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
  exit
fi
[ "$#" -gt 0 ] || fail "give the arguments of train.py, such as --config=configs/vq_enwik8.py --workdir=runs/a."
tasks=${SLURM_NTASKS_PER_NODE:-8} gpus=${SLURM_GPUS_PER_NODE:-8}
[ "$tasks" = "${gpus##*:}" ] || fail "--ntasks-per-node=$tasks and --gpus-per-node=$gpus differ; JAX takes one GPU for each task."
command=(srun --kill-on-bad-exit=0 --label .venv/bin/python train.py --distributed "$@")
printf '%q ' "${command[@]}"
echo
[ -z "${DRY_RUN:-}" ] || exit 0
status=0
"${command[@]}" || status=$?
# 143 is 128 + SIGTERM: everything is saved
if [ "$status" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
