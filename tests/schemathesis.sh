#!/usr/bin/env bash
# Lets Schemathesis look for requests that the API answers otherwise than it says in openapi.json:
# tests/schemathesis.sh [--seed N] [--examples N]
#
# All its checks, in all its phases, against a sidecar of its own. Without --seed there is a new one for each run; it is said
# at the end. Needs python3 with venv, and PyPI, unless SCHEMATHESIS names one that is installed. Exit code 1 if anything
# was found.
set -euo pipefail
cd "$(dirname "$0")/.."

version=4.32.5
seed=$((RANDOM * 32768 + RANDOM))
examples=100
while [ $# -gt 0 ]; do
    case "$1" in
    --seed) seed=${2:?"--seed wants a number"} ;;
    --examples) examples=${2:?"--examples wants a number"} ;;
    *)
        echo "usage: $0 [--seed N] [--examples N]" >&2
        exit 64
        ;;
    esac
    shift 2
done

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

schemathesis=${SCHEMATHESIS-}
if [ -z "$schemathesis" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
    schemathesis=$work/venv/bin/schemathesis
fi

cargo build --locked
target/debug/tradepost serve --in-memory --listen 127.0.0.1:0 --metrics-listen none --log-format text 2>"$work/log" &
server=$!
deadline=$((SECONDS + 30))
until url=$(sed -n 's/.*serving the API listen=\([0-9.:]*\).*/http:\/\/\1/p' "$work/log") && [ -n "$url" ]; do
    if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$server" 2>/dev/null; then
        echo "the sidecar does not start:" >&2
        cat "$work/log" >&2
        exit 1
    fi
    sleep 0.05
done

code=0
"$schemathesis" --config-file tests/schemathesis/schemathesis.toml run "$url/openapi.json" \
    --max-examples "$examples" --seed "$seed" || code=$?
# It must have lived through it.
if ! kill -0 "$server" 2>/dev/null; then
    echo "the sidecar is gone:" >&2
    cat "$work/log" >&2
    exit 1
fi
exit "$code"
