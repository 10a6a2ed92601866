#!/usr/bin/env bash
# Is this GPU right, and how fast is it? Runs built programs, the most valuable ones first.
#
#   run.sh [--backend cuda,vulkan] [--results DIR] [--minutes M] [--small] [--slow N] [--retry]
#          [--list] [FOLDER]
#
#   FOLDER     what build.sh made, with the programs in bin/ [where this script is]
#   --backend  backends, the most important one first [cuda,vulkan]
#   --results  folder of results [./gpu-results]
#   --minutes  stop after so many minutes [9.5]
#   --small    small models and short repeats: to try this script on any backend
#   --slow     give each step N times as long, for a device in software
#   --retry    run again what failed or took too long
#   --list     list the steps and exit
#
# Each step is boxed in time. What checks runs at once, as most of that time goes to compilers of
# kernels; what is timed runs alone, and finds kernels that were compiled and tuned before.
# results.jsonl has a line for each step: its name, backend, exit status, seconds, and the file of its
# output; steps that have one are skipped, so a run that was cut off goes on. What the benchmark
# measured is in STEP.BACKEND.jsonl. Tables of both come at the end. Exit status: 0, or 1 if a step
# failed. Needs bash and coreutils; PyTorch is compared with if it is there.
set -uo pipefail

usage=$(sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0")
complain() {
  echo "run.sh: $1" >&2
  exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
backends=cuda,vulkan results=gpu-results minutes=9.5 small= slow=1 retry= list= folder=
while (($#)); do
  case $1 in
    --backend) backends=${2:?} && shift 2 ;;
    --results) results=${2:?} && shift 2 ;;
    --minutes) minutes=${2:?} && shift 2 ;;
    --small) small=yes && shift ;;
    --slow) slow=${2:?} && shift 2 ;;
    --retry) retry=yes && shift ;;
    --list) list=yes && shift ;;
    -h | --help) echo "$usage" && exit ;;
    -*) complain "unknown option $1; --help lists them" ;;
    *) folder=$1 && shift ;;
  esac
done
folder=$(cd "${folder:-$here}" && pwd) || exit 2
bin=$folder/bin
[[ -x $bin/backends || $list ]] || complain "no program $bin/backends; build.sh makes it"
IFS=, read -ra backends <<< "$backends"
first=${backends[0]}
# A list leaves nothing behind.
[[ $list ]] && results=$(mktemp -d) && trap 'rm -rf "$results"' EXIT
mkdir -p "$results" && results=$(cd "$results" && pwd) || exit 2
lines=$results/results.jsonl
touch "$lines"

# Kept between steps: results of self-checks, and what CubeCL compiles and tunes, in the folder that a
# step runs in.
export XDG_CACHE_HOME=$results/cache
mkdir -p "$results/timed" "$results/checked"
printf '[%s]\ncache = "local"\n' autotune compilation > "$results/cubecl.toml"

# The environment ---------------------------------------------------------------------------------

# Whether the loader finds a library.
is_found() {
  ldconfig -p 2>/dev/null | grep -qF "$1"
}

# What is not in a usual place: the headers and NVRTC of a CUDA toolkit or of Python packages, the
# NVIDIA driver of a container, Vulkan drivers.
find_drivers() {
  local header root folders=() icd
  for root in "${CUDA_PATH:-}" /usr/local/cuda /opt/cuda; do
    [[ $root && -e $root/include/cuda_fp16.h ]] && export CUDA_PATH=$root && break
  done
  if [[ ! ${CUDA_PATH:-} ]]; then
    root=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null)
    header=$(find "${root:-/nonexistent}" -path '*include/cuda_fp16.h' 2>/dev/null | head -1)
    [[ $header ]] && export CUDA_PATH=${header%/include/*}
  fi
  is_found libnvrtc.so || folders+=("${CUDA_PATH:-}/lib64" "${CUDA_PATH:-}/lib")
  is_found libcuda.so || folders+=(/usr/local/nvidia/lib64 /usr/local/nvidia/lib)
  for root in "${folders[@]}"; do
    [[ -d $root ]] && export LD_LIBRARY_PATH=$root${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  done
  for icd in /usr/local/nvidia/share/vulkan/icd.d /usr/share/vulkan/icd.d /etc/vulkan/icd.d; do
    if [[ ! ${VK_DRIVER_FILES:-} && -e $icd/nvidia_icd.json ]]; then
      export VK_DRIVER_FILES=$icd/nvidia_icd.json
    fi
  done
}

# Tests and --parity read the fixtures where they were built: a link leads there.
fixtures=
find_fixtures() {
  local root place
  root=$(cat "$folder/ROOT" 2>/dev/null) || return
  if [[ ! -e $root/tests/fixtures ]]; then
    for place in "$folder/tests/fixtures" "$here/../../tests/fixtures" "$PWD/tests/fixtures"; do
      [[ -d $place ]] || continue
      mkdir -p "$root/tests" 2>/dev/null &&
        ln -sn "$(cd "$place" && pwd)" "$root/tests/fixtures" 2>/dev/null && break
    done
  fi
  [[ -e $root/tests/fixtures ]] && fixtures=$root/tests
}

# PyTorch on the GPU.
has_torch() {
  [[ -d $folder/peers || -d $here/../peers ]] &&
    python3 -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null
}

# Steps -------------------------------------------------------------------------------------------

start=$SECONDS
budget=$(awk -v m="$minutes" 'BEGIN { printf "%d", 60 * m }')
left() { echo $((budget - (SECONDS - start))); }

# Whether a step has a line that counts.
is_done() {
  local ok='[0-9]'
  [[ $retry ]] && ok='0,'
  grep -q "^{\"step\":\"$1\",\"backend\":\"$2\",\"rc\":$ok" "$lines"
}

# attempt NAME BACKEND SECONDS FOLDER COMMAND…: runs a command in its box, in a folder of the results,
# and writes a line about it.
attempt() {
  local name=$1 backend=$2 box=$3 place=$results/$4 begin seconds rc
  shift 4
  mkdir -p "$place"
  begin=$EPOCHREALTIME
  timeout --kill-after=5 "$box" env -C "$place" "$@" > "$results/$name.$backend.log" 2>&1 < /dev/null
  rc=$?
  seconds=$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
  printf '{"step":"%s","backend":"%s","rc":%d,"seconds":%s,"output":"%s"}\n' \
    "$name" "$backend" "$rc" "$seconds" "$name.$backend.log" > "$results/$name.$backend.line"
}

# record NAME BACKEND: the line of a step joins the others, in place of that of an earlier try.
record() {
  local line=$results/$1.$2.line
  grep -v "^{\"step\":\"$1\",\"backend\":\"$2\"," "$lines" > "$lines.part"
  cat "$line" >> "$lines.part" && mv "$lines.part" "$lines"
  grep -q '"rc":0,' "$line" || tail -3 "$results/$1.$2.log" | sed 's/^/    /'
  rm "$line"
}

# Steps that run at the same time; each has its own folder, since their caches are not made for
# several programs.
together= waiting=()

at_once() {
  together=yes
  "$@"
  together=
  wait
  local step
  for step in "${waiting[@]}"; do
    record ${step}
  done
  waiting=()
}

# step NAME BACKEND SECONDS COMMAND…: runs a command in its box, and writes down how it went.
step() {
  local name=$1 backend=$2 box=$(($3 * slow))
  shift 3
  if [[ $list ]]; then
    echo "$name $backend (at most $box s): ${*/#$bin\//}"
    return
  fi
  is_done "$name" "$backend" && return
  if (($(left) < 10)); then
    echo "::: $name $backend: no time left"
    return
  fi
  (($(left) < box)) && box=$(left)
  echo "::: $name $backend, at most $box s"
  if [[ $together ]]; then
    waiting+=("$name $backend")
    attempt "$name" "$backend" "$box" "checked/$name.$backend" "$@" &
  else
    attempt "$name" "$backend" "$box" timed "$@"
    record "$name" "$backend"
  fi
}

# workloads STEP BACKEND SECONDS ARGUMENT…: a step of the benchmark, with its own file of JSON lines.
workloads() {
  local name=$1 backend=$2 box=$3
  shift 3
  [[ -x $bin/workloads || $list ]] || return
  step "$name" "$backend" "$box" "$bin/workloads" --backend "$backend" --memory \
    --json "$results/$name.$backend.jsonl" "$@"
}

# self_check NAME BACKEND DTYPES
self_check() {
  step "self-check-$1" "$2" 120 "$bin/backends" --backend "$2" --dtype "$3" --self-check
}

# suite NAME BACKEND SECONDS FILTER…: tests on a backend.
suite() {
  local name=$1 backend=$2 box=$3
  shift 3
  [[ -x $bin/suite && $fixtures || $list ]] || return
  step "$name" "$backend" "$box" env PROPTEST_CASES=15 "$bin/suite" --test-threads 4 "$@"
}

# The tests of what every plan needs, and the others.
core=(parity identities engine continued interventions orthonormal gradients training)

suite_core() {
  suite suite-core "$1" "$2" "${core[@]/%/::$1::}"
}

suite_rest() {
  local tests=("$1::") name
  for name in "${core[@]}" self_check; do
    tests+=(--skip "$name::$1::")
  done
  suite suite-rest "$1" "$2" "${tests[@]}"
}

# example NAME BACKEND DTYPE: checks its own claims. Refuses where the self-check has failed.
example() {
  [[ -x $bin/$1 || $list ]] || return
  step "$1-$3" "$2" 60 "$bin/$1" --backend "$2" --dtype "$3"
}

# Wrong numbers make everything else worthless.
correctness() {
  local backend
  for backend in "${backends[@]}"; do
    self_check f32 "$backend" f32
    self_check half "$backend" bf16,f16
    if [[ $fixtures || $list ]]; then
      step parity "$backend" 120 "$bin/backends" --backend "$backend" --parity
    fi
    suite_core "$backend" 120
    if [[ -x $bin/backends-plain || $list ]]; then
      step self-check-plain "$backend" 120 "$bin/backends-plain" --backend "$backend" --self-check
    fi
  done
}

# GPT-2 small; or two layers of SmolLM2, whose head is no more than software devices hold in one piece.
gpt2() {
  local box=$1 families=(forward single sweep_block_output head_sweep batch das_rotated das_lowrank)
  local options=(--seconds 0.3)
  [[ $small ]] && options=(--seconds 0.05 --model smollm2-135m --layers 2)
  shift
  workloads "gpt2-$2" "$1" "$box" --dtype "$2" "${options[@]}" "${families[@]}"
}

# LLaMA 2 7B in bf16, a process for each workload so that peaks of memory are not mixed, and texts by
# LLaMA 3 8B; or a small model.
llama() {
  local seven=(--model llama2-7b --dtype bf16 --pos 80 --seconds 1)
  local eight=(--model llama3-8b --dtype bf16 --repeats 3)
  local batch=(--batch 32 --layer 15) rank=128
  if [[ $small ]]; then
    seven=(--model smollm2-135m --layers 2 --dtype f32 --pos 4 --seconds 0.05)
    eight=(--model smollm2-135m --layers 2 --dtype f32 --repeats 1)
    batch=(--batch 2 --layer 1) rank=16
  fi
  workloads llama-product "$1" 60 "${seven[@]}" --batch 32 product
  workloads llama-forward "$1" 60 "${seven[@]}" "${batch[@]}" forward
  workloads llama-lowrank "$1" 60 "${seven[@]}" "${batch[@]}" --rank $rank das_lowrank
  workloads llama-generate "$1" 60 "${eight[@]}" generate_1x31 generate_16x31
  workloads llama-sweep "$1" 60 "${seven[@]}" --repeats 2 sweep_block_output
  workloads llama-batch "$1" 40 "${seven[@]}" "${batch[@]}" batch
  workloads llama-boundless "$1" 60 "${seven[@]}" "${batch[@]}" das_boundless
  workloads llama-fused "$1" 40 "${seven[@]}" "${batch[@]}" --fused forward
}

# The same workloads in PyTorch and pyvene, on the same GPU.
peers() {
  local scripts=$folder/peers
  [[ -d $scripts ]] || scripts=$here/../peers
  if ! { [[ $first == cuda && ! $small ]] && has_torch; }; then
    [[ $list ]] || return
  fi
  local compare=(python3 "$scripts/compare.py" --program "$bin/workloads" --device cuda --dtype bf16
    --rounds 1)
  local seven=(--model llama2-7b --pos 80)
  step peers-llama cuda 120 "${compare[@]}" "${seven[@]}" --batch 32 --layer 15 --rank 128 \
    --memory --seconds 0.5 forward das_lowrank
  step peers-sweep cuda 120 "${compare[@]}" "${seven[@]}" --cells 40 --repeats 2 sweep_block_output
  step peers-gpt2 cuda 90 "${compare[@]}" --seconds 0.3 forward single sweep_block_output das_lowrank
}

all() {
  local backend
  at_once correctness
  if [[ $small ]]; then
    gpt2 60 "$first" f32
  else
    gpt2 60 "$first" bf16
  fi
  llama "$first"
  example capital_of_spain "$first" f32
  [[ $small ]] || example lowrank_das_capitals "$first" f32
  [[ $small ]] || gpt2 60 "$first" f32
  peers
  suite_rest "$first" 120
  for backend in "${backends[@]:1}"; do
    gpt2 60 "$backend" f32
    example capital_of_spain "$backend" f32
  done
}

# Results -----------------------------------------------------------------------------------------

# The value of a key in a line of JSON; `-` if there is none.
value() {
  if [[ $2 =~ \"$1\":\"([^\"]*)\" || $2 =~ \"$1\":([^,}]*) ]]; then
    echo "${BASH_REMATCH[1]}"
  else
    echo -
  fi
}

table() {
  local line verdict rc file step
  printf '\n%-25s %-8s %-10s %9s  %s\n' step backend result seconds output
  while IFS= read -r line; do
    rc=$(value rc "$line")
    case $rc in
      0) verdict=passed ;;
      124 | 137) verdict='too long' ;;
      *) verdict="failed $rc" ;;
    esac
    printf '%-25s %-8s %-10s %9s  %s\n' "$(value step "$line")" "$(value backend "$line")" \
      "$verdict" "$(value seconds "$line")" "$(value output "$line")"
  done < "$lines"

  printf '\n%-16s %-28s %-16s %-12s %9s %9s\n' step workload model backend seconds 'peak MiB'
  for file in "$results"/*-*.jsonl; do
    step=${file##*/}
    while IFS= read -r line; do
      printf '%-16s %-28s %-16s %-12s %9.6s %9s\n' "${step%%.*}" "$(value workload "$line")" \
        "$(value model "$line")" "$(value backend "$line")/$(value dtype "$line")" \
        "$(value seconds "$line")" "$(value peak_mib "$line")"
    done < "$file"
  done 2>/dev/null
}

find_drivers
find_fixtures
all
[[ $list ]] && exit
table
! grep -qv '"rc":0,' "$lines"
