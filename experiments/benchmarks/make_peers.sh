#!/bin/sh
# Makes the environments of the systems that grpo_step.py, train_step.py and
# decode.py compare with:
#
#   sh experiments/benchmarks/make_peers.sh FOLDER
#
# FOLDER/trl has TRL, transformers and PyTorch for CPUs, 1.5 GB; FOLDER/tunix has
# Tunix and its own JAX, 2 GB. If pip does not know PyTorch's wheels for CPUs,
# name their index in PIP_EXTRA_INDEX_URL.
set -eu
folder=${1:?give a folder outside of the source tree}
python=${PYTHON:-python3.11}
mkdir -p "$folder"

make() {
  name=$1
  shift
  [ -x "$folder/$name/bin/python" ] || "$python" -m venv "$folder/$name"
  "$folder/$name/bin/pip" install -q "$@"
  "$folder/$name/bin/pip" freeze > "$folder/$name/versions.txt"
}

make trl 'torch==2.13.0+cpu' 'transformers==5.23.0' 'trl==1.16.0'
make tunix 'google-tunix==0.1.7'
