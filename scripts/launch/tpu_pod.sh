#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs, v4 to v6e: makes it, installs the program on every worker, trains, follows, stops.
#
#   bash scripts/launch/tpu_pod.sh STEP --name=NAME --zone=ZONE [OPTION …] [-- ARGUMENTS OF train.py]
#
# Steps, in this order:
#   create   the slice;            needs --type, such as v4-32, v5litepod-64, v5p-128 or v6e-64; --spot asks for spare ones
#   install  this checkout and its requirements on every worker; --data=NAME also prepares a data set there
#   train    starts the run on every worker and follows it; Ctrl-C only stops following
#   follow   what all workers print, each line with the number of its worker
#   stop     SIGTERM to worker 0: all workers agree, save and end, and `train` goes on from there
#   delete   the slice
# Options:
#   --project=PROJECT   else that of gcloud's configuration
#   --version=VERSION   software of the TPU VM, else what the type needs
#   --gcs               installs what gs:// needs; give train.py --checkpoints=gs://BUCKET/FOLDER, as workers share no disk
#   --dry_run           prints the commands and runs none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { echo "tpu_pod.sh: $*" >&2; exit 2; }

step='' name='' zone='' type='' version='' project='' data='' spot='' gcs='' dry_run=''
while [ "$#" -gt 0 ]; do
  case "$1" in
    create | install | train | follow | stop | delete)
      [ -z "$step" ] || fail "two steps, $step and $1; give one."
      step=$1
      ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --data=*) data=${1#*=} ;;
    --spot) spot=1 ;;
    --gcs) gcs=1 ;;
    --dry_run) dry_run=1 ;;
    --help) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' scripts/launch/tpu_pod.sh; exit ;;
    --) shift; break ;;
    *) fail "unknown argument $1; arguments of train.py follow after --." ;;
  esac
  shift
done
[ -n "$step" ] || fail "no step; give one of create, install, train, follow, stop, delete."
[ -n "$name" ] && [ -n "$zone" ] || fail "--name and --zone are needed."
[ "$#" -eq 0 ] || [ "$step" = train ] || fail "only train takes arguments of train.py."
[ -n "$dry_run" ] || command -v gcloud >/dev/null || fail "gcloud is not installed; see cloud.google.com/sdk/docs/install."

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")

run() {
  printf '%q ' "$@"
  echo
  [ -n "$dry_run" ] || "$@"
}

# on WORKER COMMAND: in a shell there.
on() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

version_of() {
  case "$1" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "--type=$1 is not known; give v4-CORES, v5litepod-CHIPS, v5p-CORES or v6e-CHIPS." ;;
  esac
}

# shellcheck disable=SC2016  # the worker's shell expands it
follow='tail -n +1 -F lattice_jax/train.log | sed -u "s/^/[$(curl -sH Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)] /"'

# shellcheck disable=SC2016  # likewise
stop='kill -TERM $(cat lattice_jax/train.pid)'

case "$step" in
  create)
    [ -n "$type" ] || fail "create needs --type, such as v5litepod-64."
    [ -n "$version" ] || version=$(version_of "$type")
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
    ;;
  install)
    archive=/tmp/lattice_jax_$name.tar.gz
    run git archive --format=tar.gz --prefix=lattice_jax/ --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$name:lattice_jax.tar.gz" "${where[@]}" --worker=all
    jax=$(sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.txt)
    install="tar xzf lattice_jax.tar.gz && cd lattice_jax && python3 -m venv .venv && .venv/bin/pip install -q"
    install+=" -r requirements.txt 'jax[tpu]==$jax'${gcs:+ gcsfs==2026.10.1}"
    [ -z "$data" ] || install+=" && .venv/bin/python scripts/prepare_data.py $(printf '%q' "$data")"
    on all "$install"
    ;;
  train)
    [ "$#" -gt 0 ] || fail "train needs the arguments of train.py after --, such as -- --config=configs/vq_enwik8.py --workdir=runs/a."
    on all "cd lattice_jax && { nohup .venv/bin/python train.py --distributed$(printf ' %q' "$@") > train.log 2>&1 < /dev/null & echo \$! > train.pid; }"
    on all "$follow"
    ;;
  follow) on all "$follow" ;;
  stop) on 0 "$stop" ;;
  delete) run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet ;;
esac
