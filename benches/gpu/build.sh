#!/usr/bin/env bash
# Builds what run.sh needs, and packs it for a machine without cargo and network: a pack for each
# program, all to be unpacked in one place; run.sh uses those that are there.
#
#   benches/gpu/build.sh [--features cuda,vulkan] [--out DIR] [--limit MIB] [--plain] [--fixtures]
#                        [--without NAME,…]
#
#   --features  backends, all in one build [cuda,vulkan]
#   --out       folder for the programs; the packs are DIR.NAME.tar.xz [target/gpu]
#   --limit     largest pack, in MiB [60]
#   --plain     also `backends` without fusion and autotuning, as `backends-plain`; builds Burn again
#   --fixtures  also tests/fixtures, for a machine without this checkout
#   --without   programs to leave out
set -euo pipefail
usage=$(sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0")
cd "$(dirname "$0")/../.."

complain() {
  echo "build.sh: $1" >&2
  exit "$2"
}

features=cuda,vulkan out= limit=60 plain= fixtures= without=
while (($#)); do
  case $1 in
    --features) features=${2:?} && shift 2 ;;
    --out) out=${2:?} && shift 2 ;;
    --limit) limit=${2:?} && shift 2 ;;
    --plain) plain=yes && shift ;;
    --fixtures) fixtures=yes && shift ;;
    --without) without=${2:?} && shift 2 ;;
    -h | --help) echo "$usage" && exit ;;
    *) complain "unknown option $1; --help lists them" 2 ;;
  esac
done
out=${out:-${CARGO_TARGET_DIR:-target}/gpu}
examples=(backends capital_of_spain lowrank_das_capitals)

wanted() { [[ ",$without," != *",$1,"* ]]; }

# Cargo's messages → `NAME FILE` of each program.
programs() {
  local line name file
  while IFS= read -r line; do
    [[ $line == *'"executable":"'* ]] || continue
    name=${line#*'"name":"'} && name=${name%%'"'*}
    file=${line#*'"executable":"'} && file=${file%%'"'*}
    echo "$name $file"
  done
}

# build NAME… -- CARGO_ARGUMENT…: builds, then copies the programs with these names.
build() {
  local names=() name file
  while [[ $1 != -- ]]; do names+=("$1") && shift; done
  shift
  echo "::: cargo $*" >&2
  while read -r name file; do
    [[ " ${names[*]} " == *" $name "* ]] || continue
    strip --strip-all -o "$out/bin/$name" "$file"
  done < <(cargo "$@" --message-format json-render-diagnostics | programs)
  for name in "${names[@]}"; do
    [[ -x $out/bin/$name ]] || complain "cargo built no $name" 1
  done
}

rm -rf "$out" && mkdir -p "$out/bin"
flags=()
chosen=()
for example in "${examples[@]}"; do
  wanted "$example" && flags+=(--example "$example") && chosen+=("$example")
done
if [[ $plain ]]; then
  build backends -- build --release --no-default-features --features "flex,$features" --example backends
  mv "$out/bin/backends" "$out/bin/backends-plain"
fi
if ((${#chosen[@]})); then
  build "${chosen[@]}" -- build --release --features "$features" "${flags[@]}"
fi
wanted workloads && build workloads -- bench --no-run --bench workloads --features "$features"
wanted suite &&
  build suite -- test --release --no-run -p burn-align-tests --test suite --features "$features"

# Tests read their fixtures where they were built.
pwd > "$out/ROOT"
cp benches/gpu/run.sh "$out/"
mkdir -p "$out/peers" && cp benches/peers/*.py "$out/peers/"
if [[ $fixtures ]]; then
  mkdir -p "$out/tests" && cp -r tests/fixtures "$out/tests/" && rm -f "$out"/tests/fixtures/*.py
fi

# pack NAME FILE…: packs files of the folder, and tells how large the pack is.
pack() {
  local file=$out.$1.tar.xz files=("${@:2}")
  tar -C "$(dirname "$out")" -cf - "${files[@]/#/$(basename "$out")/}" | xz -T0 -6 > "$file"
  bytes=$(wc -c < "$file")
  echo "$file: $((bytes >> 20)) MiB"
  ((bytes <= limit << 20)) || complain "more than $limit MiB: one backend makes it smaller" 1
}

rm -f "$out".*.tar.xz
scripts=(ROOT run.sh peers)
[[ $fixtures ]] && scripts+=(tests)
for program in "$out"/bin/*; do
  name=$(basename "$program") files=("bin/$(basename "$program")")
  # Nothing runs without it.
  [[ $name == backends ]] && files+=("${scripts[@]}")
  pack "$name" "${files[@]}"
done
