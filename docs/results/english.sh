#!/usr/bin/env bash
# The runs on English text of docs/results.md. The same command goes on where it was stopped.
#
#     docs/results/english.sh TABLE.yaml [options of `alphadecay table`]
#
# It fetches the text and encodes it where that is not done, trains the cells that are not finished, and
# writes the numbers of all cells to TABLE.json.
set -euo pipefail

table=${1:?usage: english.sh TABLE.yaml [options of \`alphadecay table\`]}
shift
text=data/english
[[ -e $text/validation.jsonl.gz ]] || python examples/english_text.py "$text"
[[ -e $text/prepared/manifest.json ]] ||
    alphadecay data prepare --recipe docs/results/english.yaml --output "$text/prepared"
alphadecay table "$table" "$@" --run
alphadecay table "$table" "$@" --format json >"${table%.yaml}.json.new"
mv "${table%.yaml}.json.new" "${table%.yaml}.json"
