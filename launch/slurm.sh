#!/usr/bin/env bash
# One training run on two machines of a Slurm cluster:   sbatch launch/slurm.sh
# Slurm reserves the machines and starts torchrun once on each; torchrun starts the ranks.

#SBATCH --job-name=ddp-workbook
#SBATCH --nodes=2
# torchrun counts as one task; it starts the ranks itself.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
# On machines with GPUs also:   #SBATCH --gpus-per-node=4
#SBATCH --time=01:00:00
#SBATCH --output=ddp-workbook-%j.log

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch from the folder of the workbook}"
source .venv/bin/activate # the folder must be on a file system that all machines see

# The ranks meet at the first machine of the job. The port is made of the job's number, so that two jobs do not clash.
HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 10000))

# How many ranks each machine gets: one per GPU, or one on all cores where there is none.
RANKS_PER_NODE=${SLURM_GPUS_ON_NODE:-1}

# Seconds that a rank waits for another before the run ends with a message.
export DDP_TIMEOUT=300

# The data: downloaded once, before any rank waits for it.
python -c "from ddp_workbook.training.datasets import load_dataset; from ddp_workbook.recipes import get_recipe; load_dataset(get_recipe('resnet50-cifar10'))"

# srun starts the same line on every machine. --resume goes on with a run that was cut off, when the job is submitted or
# requeued again, from the checkpoints on the shared file system; there are none the first time. --rdzv-id keeps a late
# process of another job out. --batch-size is per
# rank: on 2 machines with one rank each the global batch is 128.
srun --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" \
  --nproc-per-node="$RANKS_PER_NODE" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="$HEAD_NODE:$PORT" \
  --rdzv-id="$SLURM_JOB_ID" \
  distributed_train.py --recipe resnet50-cifar10 --batch-size 64 --resume
