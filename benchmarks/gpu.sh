#!/usr/bin/env bash
# All that is marked unmeasured in docs/benchmarks.md, in one go, on the GPUs of this machine:
#   bash benchmarks/gpu.sh 2>&1 | tee gpu.log
# Needs torch with CUDA and the package; DeepSpeed's rows are left out where it is not installed.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD
gpus=$(python -c "import torch; print(torch.cuda.device_count())")
settings=$(mktemp -d)
trap 'rm -rf "$settings"' EXIT
# The published model, with room for sequences of 2048.
sed 's/"max_position_embeddings": 1024/"max_position_embeddings": 2048/' \
  alphadecay_dist/recipes/models/llama_1b.json > "$settings/llama_1b.json"

run() {
  echo
  echo "\$ $*"
  "$@" || echo "FAILED with $?"
}

model=(--recipe llama_1b "--model.name=$settings/llama_1b.json" --tokenizer.model=train --data.source=demo
  --data.pack=true --data.lanes=1 --eval.tokens=20000 --optimizer.name=adamw --decay.weight_decay=0.1
  --train.steps=16 --decay.interval=8 --checkpoint.every=0)
launch=(torchrun --nproc_per_node "$gpus" benchmarks/throughput.py --repeats 2)

nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
run torchrun --nproc_per_node "$gpus" --no-python alphadecay doctor --output_dir "$settings/run"
for sizes in "256 64" "2048 8"; do
  read -r length micro <<< "$sizes"
  shape=("--train.seq_len=$length" "--train.micro_batch=$micro" "--train.global_batch=$((micro * 4 * gpus))")
  run "${launch[@]}" "${model[@]}" "${shape[@]}"
  run "${launch[@]}" "${model[@]}" "${shape[@]}" --train.compile=true
  run "${launch[@]}" "${model[@]}" "${shape[@]}" --train.compile=true --decay.apply=premultiply
  run "${launch[@]}" "${model[@]}" "${shape[@]}" --train.compile=true --decay.apply=premultiply --decay.lag=4
done
engines=(fsdp2 ddp)
if python -c "import deepspeed" 2> /dev/null; then
  engines+=(zero1 zero2 zero3)
  for stage in 1 2 3; do
    run deepspeed benchmarks/throughput.py --repeats 2 --deepspeed "ds_configs/zero$stage.json" "${model[@]}" \
      --train.seq_len=256 --train.micro_batch=64 "--train.global_batch=$((256 * gpus))" --decay.apply=auto
  done
fi
run python benchmarks/groups.py --device cuda --ranks "$gpus" --engine "${engines[@]}" --width 1024 --rows 4096
run python benchmarks/refresh.py --device cuda --sizes 1b
run python benchmarks/solvers.py --device cuda
run python benchmarks/nccl_check.py --device cuda --ranks "$gpus"
