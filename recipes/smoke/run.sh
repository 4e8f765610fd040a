#!/usr/bin/env bash
# Real rows, an untrained model, ten steps of Prefix-RFT on one process and on two under ZeRO-2. Needs no GPU.
#   recipes/smoke/run.sh ROWS [OUTPUT]
# ROWS is a file that `prefix-rl prepare` reads, for example GSM8K's train.jsonl.
set -euo pipefail
rows=${1:?give a file of problems, for example gsm8k-train.jsonl.gz}
output=${2:-runs/smoke}
recipe=$(dirname "$0")/prefix_rft.yaml
zero2=$(dirname "$0")/../accelerate/zero2.yaml
values=(model.name_or_path="$output/model" data.train="$output/rows.jsonl")
export OMP_NUM_THREADS=1

prefix-rl prepare "$rows" --output "$output/rows.jsonl"
prefix-rl tiny "$output/model"
prefix-rl schedule "$recipe" "${values[@]}" --plot "$output/schedule.png"
prefix-rl train "$recipe" "${values[@]}" output.dir="$output/one"
accelerate launch --config_file "$zero2" --num_processes 2 --mixed_precision no \
  -m prefix_rl.train --config "$recipe" "${values[@]}" output.dir="$output/two" training.per_device_train_batch_size=8
prefix-rl report "$output/one" "$output/two" --output "$output/report"
