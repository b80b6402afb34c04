#!/bin/bash
# A run over several nodes under SLURM that survives its time limit:
#
#   sbatch configs/parallel/slurm.sh configs/llama_neg_p.yaml llama-neg-p
#
# Two minutes before the limit every rank gets SIGUSR1. The run writes a checkpoint and requeues the job; the next start finds
# the checkpoint and resumes. Adapt the resources; use one task per GPU.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
config=$1
name=$2

resume=()
if compgen -G "runs/$name/checkpoints/step-*.ckpt" > /dev/null; then
  resume=(--resume)
elif [ -d "runs/$name" ] && [ ! -e "runs/$name/hf" ]; then
  resume=(--overwrite)  # it ended before its first checkpoint
fi
srun --kill-on-bad-exit=1 python -m lit_probsft fit --config "$config" --config configs/parallel/fsdp2.yaml \
  --name "$name" --trainer.num_nodes "$SLURM_NNODES" --trainer.devices 8 "${resume[@]}"
