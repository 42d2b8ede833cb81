#!/bin/sh
# Compiles the C reader to WebAssembly, without a C library: build.sh OUTPUT
set -eu
here=$(dirname "$0")
root=$here/../..
${CLANG:-clang} --target=wasm32 -std=c11 -O2 -msimd128 -mbulk-memory -ffreestanding -fno-builtin-memcmp -fno-builtin-strlen \
    -nostdlib -Wall -Wextra -Wno-unused-function -isystem "$here/libc" -I"$root/c" -I"$root/include" \
    -I"$root/src/opq/codec/native" -Wl,--no-entry,--strip-all,-z,stack-size=262144,--max-memory=4294967296 \
    -o "$1" "$here/reader.c"
