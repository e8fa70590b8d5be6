#!/bin/sh
# Builds the fuzz targets and runs each for so many seconds: fuzz/run.sh SECONDS [TARGET...]
#
# Needs cargo and a C++ compiler (libFuzzer is built from source), and neither nightly nor cargo-fuzz: these are the
# flags that cargo-fuzz passes, less the address sanitizer, which safe code has little use for.
# TRADEPOST_FUZZ_SEED repeats a run, as far as the time that it is given allows.
# What is found goes to fuzz/artifacts, what is interesting to fuzz/corpus.
set -eu

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
[ $# -gt 0 ] || set -- codec request commands file

for tool in cargo rustc; do
    command -v "$tool" >/dev/null || { echo "fuzz/run.sh: $tool is missing" >&2; exit 69; }
done
command -v "${CXX:-c++}" >/dev/null || { echo "fuzz/run.sh: ${CXX:-c++}, a C++ compiler, is missing" >&2; exit 69; }

cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target named, the flags do not reach build scripts and procedural macros. Where tests run beside it, the build waits.
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 $coverage" CARGO_TARGET_DIR=target \
    nice -n 19 cargo build --locked --release --target "$host" --bins

for target in "$@"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    dictionary=
    [ -f "$target.dict" ] && dictionary="-dict=$target.dict"
    echo "== $target, $seconds s" >&2
    "target/$host/release/$target" "corpus/$target" "-artifact_prefix=artifacts/$target/" \
        "-max_total_time=$seconds" -max_len=4096 -timeout=60 -print_final_stats=1 \
        ${TRADEPOST_FUZZ_SEED:+"-seed=$TRADEPOST_FUZZ_SEED"} $dictionary
done
