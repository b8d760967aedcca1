#!/usr/bin/env bash
# What docs/benchmarks.md has of GPUs, part by part, each within 8 minutes:
#   bash benchmarks/gpu.sh PART ... --out DIR [--wheels FILE.tar] [--device cpu]
# Parts: check doctor spectra interval exchange groups muon train256 train2048 zero zero_train; all of them where none is named.
# DIR gets a file a part: the machine, then each command with what it printed. Needs torch with CUDA, transformers,
# sentencepiece and no network; FILE.tar is what benchmarks/wheels.sh made: DeepSpeed, for a machine without it.
# What is missing or fails is a line, and the rest goes on; the exit code is 1 where something failed.
# --device cpu runs the same commands with small sizes, to try the script. It changes no setting of a GPU.
set -u
cd "$(dirname "$0")/.." || exit 2
all=(check doctor spectra interval exchange groups muon train256 train2048 zero zero_train)
parts=() out='' wheels='' device=cuda
while (($#)); do
  case $1 in
    --out) out=$2 && shift 2 ;;
    --wheels) wheels=$2 && shift 2 ;;
    --device) device=$2 && shift 2 ;;
    -*) echo "gpu.sh: unknown option $1" >&2 && exit 2 ;;
    *) parts+=("$1") && shift ;;
  esac
done
[[ -n $out ]] || { echo "gpu.sh: give --out DIR" >&2 && exit 2; }
for name in "${parts[@]}"; do
  [[ " ${all[*]} " == *" $name "* ]] || { echo "gpu.sh: unknown part $name, expected some of ${all[*]}" >&2 && exit 2; }
done
((${#parts[@]})) || parts=("${all[@]}")
mkdir -p "$out" || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} WANDB_MODE=offline HF_HUB_OFFLINE=1
if [[ -n $wheels ]]; then
  mkdir "$work/wheels" && tar -xf "$wheels" -C "$work/wheels" || exit 2
  missing=()
  for wheel in "$work"/wheels/*.whl; do # what the machine has of its own stays
    name=${wheel##*/} && name=${name%%-*}
    python3 -c "import importlib.metadata as m; m.version('$name')" 2> /dev/null || missing+=("$wheel")
  done
  ((${#missing[@]} == 0)) ||
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "${missing[@]}" || exit 2
  export PYTHONPATH=$PYTHONPATH:$work/site
fi
seconds=480
ranks=$(python3 -c "import torch; print(torch.cuda.device_count())") || exit 2
[[ $device == cpu ]] && ranks=2
((ranks)) || { echo "gpu.sh: torch sees no GPU; --device cpu tries the script" >&2 && exit 2; }

has_deepspeed() { python3 -c "import deepspeed" > "$work/deepspeed.log" 2>&1; }

# Runs a command within what is left of the part's time.
run() {
  local left=$((deadline - SECONDS))
  printf '\n$ %s\n\n' "$*"
  if ((left < 10)); then
    echo "skipped: out of time" && return
  fi
  timeout -k 10 "$left" "$@" 2> "$work/stderr"
  local code=$?
  if ((code)); then
    grep -aE '[Ee]rror:' "$work/stderr" | tail -n 5
    echo "failed: exit code $code"
    failed=1
  fi
}

launched() { run python3 -m torch.distributed.run --nproc_per_node "$ranks" "$@"; }

model=(--recipe llama_1b "--model.name=$work/llama_1b.json" --train.steps=12 --decay.interval=6)
lag=4
few=(--sizes 1b_layer 1b --repeats 2)
solvers=(--sizes 512 1024 2048)
matrices=(--width 1024 --rows 4096)
gathered=(--sizes 60m 130m 350m)
steps=(--sizes 130m 350m 1b)
published=(--batch 128 --seq 256 --accumulate 4) # the tokens of a published update
shapes=(60m 130m)
# The published model, with room for sequences of 2048.
sed 's/"max_position_embeddings": 1024/"max_position_embeddings": 2048/' \
  alphadecay_dist/recipes/models/llama_1b.json > "$work/llama_1b.json"
if [[ $device == cpu ]]; then
  model=(--recipe demo --train.steps=4 --decay.interval=2)
  lag=1
  few=(--sizes 60m --repeats 1)
  solvers=(--sizes 64 --repeats 1)
  matrices=(--matrices 4 --width 64 --rows 8 --repeats 2)
  gathered=(--sizes 60m --repeats 1)
  steps=(--sizes tiny --repeats 2)
  published=(--batch 1 --seq 16 --repeats 1)
  shapes=(tiny)
fi
model+=(--tokenizer.model=train --data.source=demo --data.pack=true --data.lanes=1 --eval.tokens=20000
  --optimizer.name=adamw --decay.weight_decay=0.1 --checkpoint.every=0)

# Uniform against AlphaDecay; arguments: sequence length, micro batch, then options of train.py.
throughput() {
  local length=$1 micro=$2
  [[ $device == cpu ]] && length=32 micro=2
  launched benchmarks/throughput.py --repeats 1 "${model[@]}" "--train.seq_len=$length" \
    "--train.micro_batch=$micro" "--train.global_batch=$((micro * 4 * ranks))" "${@:3}"
}

train() {
  throughput "$1" "$2" --train.compile=true --decay.apply=premultiply
  throughput "$1" "$2" --train.compile=true --decay.apply=premultiply "--decay.lag=$lag"
  throughput "$1" "$2" --train.compile=true
  throughput "$1" "$2"
}

part() {
  case $1 in
    check) run python3 benchmarks/nccl_check.py --device "$device" --ranks "$ranks" --no_timing --without zero ;;
    doctor) launched -m alphadecay_dist doctor --output_dir "$work/doctor" ;;
    spectra)
      run python3 benchmarks/solvers.py --device "$device" "${solvers[@]}"
      run python3 benchmarks/refresh.py --device "$device" "${few[@]}"
      ;;
    interval)
      for shape in "${shapes[@]}"; do
        run python3 benchmarks/interval.py --device "$device" --shape "$shape" "${published[@]}"
      done
      ;;
    exchange)
      if ((ranks > 1)); then
        run python3 benchmarks/exchange.py --device "$device" --ranks "$ranks" "${gathered[@]}"
      else
        echo "skipped: one GPU, and nothing to exchange"
      fi
      ;;
    groups) run python3 benchmarks/groups.py --device "$device" --ranks "$ranks" --engine fsdp2 ddp "${matrices[@]}" ;;
    muon) run python3 benchmarks/muon.py --device "$device" --ranks "$ranks" "${steps[@]}" ;;
    train256) train 256 64 ;;
    train2048) train 2048 8 ;;
    zero | zero_train)
      if ! has_deepspeed; then
        echo "skipped: no deepspeed" && return
      fi
      if [[ $1 == zero ]]; then
        run python3 benchmarks/nccl_check.py --device "$device" --ranks "$ranks" --no_timing
        run python3 benchmarks/groups.py --device "$device" --ranks "$ranks" --engine zero1 zero2 zero3 "${matrices[@]}"
      else
        for stage in 2 3 1; do
          throughput 256 64 --deepspeed "ds_configs/zero$stage.json" --decay.apply=auto
        done
      fi
      ;;
  esac
}

code=0
for name in "${parts[@]}"; do
  deadline=$((SECONDS + seconds)) failed=0
  {
    python3 benchmarks/card.py --device "$device"
    part "$name"
  } > "$out/$name.txt"
  cat "$out/$name.txt"
  ((failed)) && code=1
done
exit "$code"
