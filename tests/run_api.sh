#!/bin/sh
# Builds the whole library, without Python, with tests/api_driver.c and runs it.
#   run_api.sh thread      under ThreadSanitizer
#   run_api.sh memory      under valgrind, with leaks
#   run_api.sh arm         AArch64 by ziglang, under qemu-aarch64
# CC and PYTHON are respected; objects go to a temporary folder.
set -e
cd "$(dirname "$0")/.."
mode=${1:-thread}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cc=${CC:-cc}
flags="-std=c11 -O1 -g1 -D_GNU_SOURCE -ffp-contract=off -Wall -Wextra"
link=
case $mode in
arm)
    cc="${PYTHON:-python3} -m ziglang cc -target aarch64-linux-musl"
    flags="$flags -DANE_BUILT_NEON=1 -DANE_BUILT_NEONFHM=1 -DANE_BUILT_NEONBF16=1 -DANE_BUILT_NEONFP16=1"
    run="qemu-aarch64 -cpu max"; rounds=2; link=-static ;;
thread) flags="$flags -DANE_BUILT_AVX2=1 -fsanitize=thread"; run=; rounds=40 ;;
memory)
    flags="$flags -DANE_BUILT_AVX2=1"
    run="valgrind -q --leak-check=full --show-leak-kinds=definite,indirect \
        --errors-for-leak-kinds=definite,indirect --error-exitcode=9"
    rounds=1 ;;
*)  echo "run_api.sh: unknown mode '$mode'" >&2; exit 2 ;;
esac

# shellcheck disable=SC2086
{
    find csrc -name '*.c' ! -path 'csrc/py/*'
    echo tests/api_driver.c
} | while read -r src; do
    case $mode:$src in  # AVX2 is what every x86 machine of ours has, and valgrind knows it
    arm:*_neon.c) isa="-mcpu=generic" ;;
    arm:*_neondot.c) isa="-mcpu=generic+v8_2a+dotprod" ;;
    arm:*_neonfhm.c) isa="-mcpu=generic+v8_2a+fullfp16+fp16fml" ;;
    arm:*_neonbf16.c) isa="-mcpu=generic+v8_2a+fullfp16+bf16" ;;
    arm:*_neonfp16.c) isa="-mcpu=generic+v8_2a+fullfp16" ;;
    arm:*_avx*.c | *_neon*.c | *_avx512*.c) continue ;;
    *_avx2.c) isa="-mavx2 -mfma -mf16c" ;;
    *) isa= ;;
    esac
    echo "$isa -c $src -o $out/$(echo "$src" | tr / _).o"
done | xargs -P "$(nproc)" -I{} sh -c "$cc $flags {}"
# shellcheck disable=SC2086
$cc $flags $link "$out"/*.o -o "$out/driver" -lpthread -lm -ldl
# shellcheck disable=SC2086
ANETORCH_NUM_THREADS=3 $run "$out/driver" $rounds
