#!/usr/bin/env bash
# A rank: what torch and DeepSpeed want to know, from what SLURM tells each task. slurm/job.py sets the rest.
#   srun ... bash slurm/rank.sh train.py --recipe llama_1b
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
exec python "$@"
