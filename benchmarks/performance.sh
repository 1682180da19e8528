#!/usr/bin/env bash
# Measures the CPU results of docs/performance.md: kernels, whole models, plans. One thread; half an
# hour on an idle machine with two cores. Then run: python docs/build.py (tables, CSV, pictures).
#
#   benchmarks/performance.sh            writes benchmarks/results
#   QUICK=1 benchmarks/performance.sh    runs every command at small sizes; writes runs/performance
#   CLOCK=cpu benchmarks/performance.sh  measures process time, for a machine that is not idle
#   ONLY="bench_ops …" benchmarks/performance.sh   measures these again and keeps the others
set -euo pipefail
cd "$(dirname "$0")/.."
CASTLING=${CASTLING:-castling}
export OMP_NUM_THREADS=1

if [ "${QUICK:-0}" = 1 ]; then
  RESULTS=runs/performance
  TOKENS="49 196" LONG=1024 SHAPES="49" SMALL="49" SIZES="64 128" WIDE="64" ROUNDS="--rounds 3 --seconds 1"
  DEIT=castling_deit_pico OTHERS="castling_levit_pico castling_mvitv2_pico qt_vit_pico cas_vit_pico"
  FOLDED="castling_deit_pico castling_levit_pico castling_mvitv2_pico qt_vit_pico cas_vit_pico"
  PLANS="deit_pico:64 deit_pico:128"
else
  RESULTS=benchmarks/results
  TOKENS="49 196 1024 4096" LONG=16384 SHAPES="196 1024" SMALL="49 196" SIZES="224 512 1024" WIDE="224 512" ROUNDS=""
  DEIT=castling_deit_tiny_patch16_224
  OTHERS="castling_deit_small_patch16_224 castling_levit_128s castling_mvitv2_tiny qt_vit_1 cas_vit_xs"
  FOLDED="castling_deit_small_patch16_224 castling_levit_128s castling_mvitv2_tiny qt_vit_1"
  FOLDED="$FOLDED cas_vit_xs cas_vit_s cas_vit_t"
  PLANS="deit_tiny_patch16_224:224 deit_tiny_patch16_224:512 levit_128s:224 mvitv2_tiny:224"
fi
mkdir -p "$RESULTS"

measure() {  # NAME COMMAND…; candidates that fail are recorded in the result and do not stop the script
  local name=$1 status=0
  shift
  [[ -z "${ONLY:-}" || " $ONLY " == *" $name "* ]] || return 0
  echo "== $name: castling $*" >&2
  rm -f "$RESULTS/$name.json"
  $CASTLING "$@" --threads 1 --clock "${CLOCK:-wall}" --output "$RESULTS/$name.json" || status=$?
  [ -s "$RESULTS/$name.json" ] || exit "$status"
}

started=$SECONDS
measure bench_ops bench ops --tokens $TOKENS $ROUNDS
measure bench_ops_batch8 bench ops --tokens $SMALL --batches 8 $ROUNDS
measure bench_ops_long bench ops --tokens $LONG $ROUNDS
measure bench_ops_shapes bench ops --tokens $SHAPES --dims 32 128 $ROUNDS
measure bench_ops_bfloat16 bench ops --tokens $SHAPES --dtypes bfloat16 $ROUNDS
measure bench_ops_backward bench ops --tokens $TOKENS --backward $ROUNDS
if grep -qs avx512f /proc/cpuinfo; then
  # Most CPUs have AVX2 only: the same machine with AVX-512 disabled in all libraries.
  export CASTLING_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
  measure bench_ops_avx2 bench ops --tokens $TOKENS $ROUNDS
  unset CASTLING_ISA ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MKL_ENABLE_INSTRUCTIONS
fi
measure bench_models bench models $DEIT --sizes $SIZES \
  --runtimes eager compiled onnxruntime openvino $ROUNDS
measure bench_models_batch8 bench models $DEIT --sizes ${SIZES%% *} --batches 8 \
  --runtimes eager compiled onnxruntime openvino $ROUNDS
measure bench_models_others bench models $OTHERS --sizes $WIDE $ROUNDS
measure bench_models_folded bench models $FOLDED --sizes ${SIZES%% *} \
  --runtimes eager folded --seconds 30 $ROUNDS
for plan in $PLANS; do
  model=${plan%%:*} size=${plan##*:}
  measure "plan_${model}_$size" plan "$model" --image_size "$size" --seconds 8
done
echo "measured in $((SECONDS - started)) s; now run: python docs/build.py" >&2
