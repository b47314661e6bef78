#!/bin/sh
# build.sh NAME: build/fuzz/fuzz_NAME from tests/fuzz/fuzz_NAME.c and csrc without py/,
# with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.
# FUZZER= (empty) links tests/fuzz/replay.c instead, which runs files once, for any compiler.
set -e
cd "$(dirname "$0")/../.."
name=$1 cc=${CC:-clang} fuzzer=${FUZZER-fuzzer,}
out=build/fuzz/${fuzzer:-plain} && mkdir -p "$out"
flags="-std=c11 -O1 -g1 -D_GNU_SOURCE -ffp-contract=off -fno-omit-frame-pointer"
san="-fsanitize=${fuzzer}address,undefined -fno-sanitize-recover=undefined"
[ -n "$fuzzer" ] && compile="-fsanitize=fuzzer-no-link,address,undefined" || compile="-fsanitize=address,undefined"
objects=
for src in $(find csrc -name '*.c' ! -path 'csrc/py/*' ! -name '*_avx*' ! -name '*_neon*' | sort); do
    obj=$out/$(echo "$src" | tr / _).o
    if [ ! "$obj" -nt "$src" ] || [ -n "$(find csrc -name '*.[hd]*' -newer "$obj" ! -name '*.c' | head -1)" ]; then
        $cc $flags $compile -fno-sanitize-recover=undefined -c "$src" -o "$obj"
    fi
    objects="$objects $obj"
done
[ -n "$fuzzer" ] && main= || main=tests/fuzz/replay.c
$cc $flags $san "tests/fuzz/fuzz_$name.c" $main $objects -lpthread -ldl -lm -o "build/fuzz/fuzz_$name"
