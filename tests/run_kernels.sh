#!/bin/sh
# Builds tests/kernels_driver.c with the library's base and kernels and runs it.
#   run_kernels.sh native              with ASan and UBSan
#   run_kernels.sh thread              with TSan
#   run_kernels.sh emulated            AVX512-BF16 and -FP16 kernels on plain AVX-512
#   run_kernels.sh neon                AArch64 by ziglang, under qemu-aarch64
# CC and PYTHON are respected; objects go to a temporary folder.
set -e
cd "$(dirname "$0")/.."
mode=${1:-native}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
flags="-std=c11 -O1 -g1 -D_GNU_SOURCE -ffp-contract=off -Wall -Wextra"
cc=${CC:-cc}
run=
avx2="-mavx2 -mfma -mf16c"
avx512="$avx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl"
built="-DANE_BUILT_AVX2=1 -DANE_BUILT_AVX512=1"
case $mode in
native) flags="$flags -fsanitize=address,undefined -fno-sanitize-recover=all" ;;
thread) flags="$flags -fsanitize=thread" ;;
emulated)
    flags="$flags -DANE_EMULATE_AVX512=1"
    built="$built -DANE_BUILT_AVX512BF16=1 -DANE_BUILT_AVX512FP16=1 -DANE_BUILT_AVX512VNNI=1" ;;
neon)
    cc="${PYTHON:-python3} -m ziglang cc -target aarch64-linux-musl"
    run="qemu-aarch64 -cpu max"
    built="-DANE_BUILT_NEON=1 -DANE_BUILT_NEONDOT=1 -DANE_BUILT_NEONFHM=1 -DANE_BUILT_NEONBF16=1 -DANE_BUILT_NEONFP16=1" ;;
*)  echo "run_kernels.sh: unknown mode '$mode'" >&2; exit 2 ;;
esac

of_file() {     # the instruction set of a file, by its suffix; nothing: not for this mode
    case $mode:$1 in
    neon:*_neon.c) echo "-mcpu=generic" ;;
    neon:*_neondot.c) echo "-mcpu=generic+v8_2a+dotprod" ;;
    neon:*_neonfhm.c) echo "-mcpu=generic+v8_2a+fullfp16+fp16fml" ;;
    neon:*_neonbf16.c) echo "-mcpu=generic+v8_2a+fullfp16+bf16" ;;
    neon:*_neonfp16.c) echo "-mcpu=generic+v8_2a+fullfp16" ;;
    neon:*_avx*) echo skip ;;
    *_neon*) echo skip ;;
    emulated:*_avx512bf16.c | emulated:*_avx512fp16.c | emulated:*_avx512vnni.c)
        echo "$avx512 -include tests/emulate_avx512.h" ;;
    *_avx512bf16.c | *_avx512fp16.c | *_avx512vnni.c) echo skip ;;
    *_avx512.c) echo "$avx512" ;;
    *_avx2.c) echo "$avx2" ;;
    esac
}

objects=
for src in csrc/base/*.c csrc/kernels/*.c tests/kernels_driver.c; do
    isa=$(of_file "$src")
    [ "$isa" = skip ] && continue
    obj=$out/$(basename "$src" .c).o
    # shellcheck disable=SC2086
    $cc $flags $built $isa -c "$src" -o "$obj"
    objects="$objects $obj"
done
link=
case $mode in neon) link=-static ;; esac
# shellcheck disable=SC2086
$cc $flags $link $objects -o "$out/driver" -lpthread -lm
# shellcheck disable=SC2086
$run "$out/driver"
