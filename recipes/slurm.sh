#!/bin/bash
# Fine-tune on several machines under Slurm: sbatch recipes/slurm.sh RECIPE [KEY=VALUE]...
# Slurm starts every process itself, so its signals reach them: two minutes before the time is over, or when the job is
# preempted, the run ends its step and saves, and this script puts it back into the queue. docs/several_machines.md
#SBATCH --job-name=vit-finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE

# --kill-on-bad-exit: what ends one process ends them all.
srun --kill-on-bad-exit=1 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec vit-finetune train "$@" --resume' train "$@"
code=$?

# 3: stopped on request and saved. Everything else is an end, good or bad.
if [ "$code" -eq 3 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
