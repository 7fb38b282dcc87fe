#!/usr/bin/env bash
# Trains a small Transformer-VQ on real text, evaluates it, and shows what it learned, in minutes on two CPU cores.
# Run again, it resumes where it stopped; a finished training run is not repeated.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv requirements.txt
run=runs/quickstart
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
devices="--cpu_devices=$((cores < 2 ? 1 : cores < 4 ? 2 : 4))"  # must divide the batch of 4
SECONDS=0

"$venv_python" train.py --config=configs/quickstart.py --workdir="$run" "$devices"
trained_in=$SECONDS

echo; echo "== The test split, compared with general compressors, and a generated text"
"$venv_python" eval.py --workdir="$run" "$devices" --split=test --protocol=both --compressors --generate=600 --prompt="The " \
  --output="$run/eval_test.json"
echo; echo "== The same checkpoint with its compressive memory masked: a block sees itself and the previous block"
"$venv_python" eval.py --workdir="$run" "$devices" --split=test --protocol=cold --set=model.vq.cache=False \
  --output="$run/eval_test_cold_masked.json"
"$venv_python" scripts/plot.py "$run" --out="$run/loss.png"
"$venv_python" scripts/plot.py "$run"/eval_test_cold.json "$run"/eval_test_cold_masked.json --out="$run/position.png"

cat <<END

Done: $trained_in s of training, $SECONDS s in all. In $run:
  loss.png             bits per byte over updates
  position.png         bits per byte by position, with and without the compressive memory
  sample_*.txt         what the model wrote
  eval_test_*.json     the results on test
  metrics.jsonl        every update, one line each
  run.json             the config, versions and data that made it
  checkpoints/         the trained model

Next, after \`source .venv/bin/activate\`:
  python eval.py --workdir=$run --generate=300 --prompt="Your own words "
  python train.py --config=configs/quickstart.py --config.data.source=text:mybook.txt --workdir=runs/mybook
  python train.py --config=configs/vq_enwik8.py:sample --workdir=runs/vq_enwik8 $devices    # ten minutes, 1.6M parameters
README.md shows more: other memories, other data, pretrained models.
END
