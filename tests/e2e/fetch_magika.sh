#!/bin/sh
# Brings what the end-to-end test with a real model needs, and prints where it is:
# a Python with onnxruntime, and magika's model out of its package. Runs again
# without doing anything. Directory: ${NF_TEST_CACHE:-$HOME/.cache/neural-fabric};
# the Python is that of NF_VENV, as in the Makefile.
set -eu

cache="${NF_TEST_CACHE:-$HOME/.cache/neural-fabric}"
version=1.0.3
inside=magika/models/standard_v3_3
model_sha256=fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c
mkdir -p "$cache"
# One at a time: test suites may run side by side.
exec 9>"$cache/.fetch_magika.lock"
flock 9

venv="${NF_VENV:-$cache/venv}"
python="$venv/bin/python"
if ! "$python" -c 'import onnxruntime, numpy, prometheus_client' 2>/dev/null; then
    [ -x "$python" ] || python3 -m venv "$venv"
    "$python" -m pip --quiet install 'onnxruntime==1.*' 'numpy==2.*' 'prometheus-client==0.*' >&2
fi

dir="$cache/magika-$version"
check() { echo "$model_sha256  $dir/model.onnx" | sha256sum --check --status 2>/dev/null && [ -s "$dir/config.min.json" ]; }
if ! check; then
    partial="$(mktemp -d "$cache/.magika.XXXXXX")"
    trap 'rm -rf "$partial"' EXIT
    "$python" -m pip --quiet download --no-deps --dest "$partial" "magika==$version" >&2
    "$python" - "$partial" "$inside" <<'PYTHON'
import glob, sys, zipfile
directory, inside = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(directory + "/*.whl")[0])
for name in ("model.onnx", "config.min.json"):
    with open(f"{directory}/{name}", "wb") as out:
        out.write(wheel.read(f"{inside}/{name}"))
PYTHON
    mkdir -p "$dir"
    mv "$partial/model.onnx" "$partial/config.min.json" "$dir/"
    check || { echo "magika $version is not the model this test knows: $dir/model.onnx" >&2; exit 1; }
fi

echo "python=$python"
echo "model=$dir/model.onnx"
echo "config=$dir/config.min.json"
