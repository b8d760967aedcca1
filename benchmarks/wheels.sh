#!/usr/bin/env bash
# One file of what a GPU machine without network lacks for DeepSpeed's rows of benchmarks/gpu.sh:
#   bash benchmarks/wheels.sh FILE.tar [PYTHON_VERSION]
# DeepSpeed as pure Python, and what it requires beside torch, for Linux on x86-64 (default: Python 3.12).
set -eu
cd "$(dirname "$0")/.."
file=$(realpath -m "${1:?give the file to write, FILE.tar}")
python=${2:-3.12}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip wheel -q --no-deps -w "$work" -c constraints.txt deepspeed
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1 manylinux_2_24 manylinux_2_31; do
  platforms+=(--platform "${name}_x86_64")
done
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
  "${platforms[@]}" -d "$work" -c constraints.txt \
  einops hjson msgpack ninja psutil py-cpuinfo annotated-types pydantic pydantic_core typing-inspection \
  sentencepiece protobuf
tar -cf "$file" -C "$work" .
ls -sh "$file"
