#!/bin/sh
# Trains on all hosts of a Cloud TPU VM slice. Run it where `gcloud` is set up:
#
#     TPU=my-slice ZONE=us-central2-b sh examples/tpu.sh --source resnet50 --target resnet18 ...
#
# REPOSITORY is cloned and installed on every host. OUT is a folder that all hosts share, such as a
# Filestore mount. Every argument goes to `python -m train`.
set -eu

: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}"
: "${REPOSITORY:?the address of the repository, to clone it on every host}"
: "${OUT:=/mnt/shared/runs}"

# On every host at once. A quoted argument stays one argument.
on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

quoted=""
for argument in "$@"; do
    quoted="$quoted '$(printf %s "$argument" | sed "s/'/'\\\\''/g")'"
done

on_all_hosts "test -d tlv_jax || git clone --depth 1 '$REPOSITORY' tlv_jax
cd tlv_jax && python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu,demo]'"
# The processes find each other by themselves on Cloud TPU.
on_all_hosts "cd tlv_jax && .venv/bin/python -m train --hosts.join --out '$OUT' $quoted"
