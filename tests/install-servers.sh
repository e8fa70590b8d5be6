#!/bin/sh
# Installs what the tests start for themselves, from Debian's packages: Redis, PostgreSQL and pgbouncer for replication,
# strace for disks that fail, Chromium for pages that mean harm.
# With --bench also etcd, which `cargo bench --bench peers` compares with. Does nothing where they are there already, so
# it may be run before every test run.
set -eu

case "${1-}" in
"" | --bench) ;;
*)
    echo "usage: $0 [--bench]" >&2
    exit 64
    ;;
esac

found_postgres() {
    for directory in /usr/lib/postgresql/*/bin; do
        [ -x "$directory/initdb" ] && return 0
    done
    command -v initdb >/dev/null 2>&1
}

found() {
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1
}

missing=""
found redis-server || missing="$missing redis-server"
found_postgres && found psql || missing="$missing postgresql"
found pgbouncer || missing="$missing pgbouncer"
found openssl || missing="$missing openssl"
found strace || missing="$missing strace"
found chromium || missing="$missing chromium"
if [ "${1-}" = --bench ]; then
    found etcd || missing="$missing etcd-server"
fi

if [ -z "$missing" ]; then
    echo "all servers are there"
    exit 0
fi

if ! found apt-get; then
    echo "These programs are needed and missing:$missing" >&2
    echo "This script installs them on Debian and its relatives only. Elsewhere, install Redis 6.2 or newer, the server" >&2
    echo "programs of PostgreSQL 13 or newer (initdb, postgres), psql, pgbouncer, openssl, strace and chromium, and for" >&2
    echo "--bench etcd 3.4 or newer, with your system's own package manager, so that they are in PATH, and try again." >&2
    exit 1
fi

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! found sudo; then
        echo "These packages are needed and missing:$missing" >&2
        echo "Installing them takes root: run this script as root, or install sudo." >&2
        exit 1
    fi
    as_root="sudo"
fi

# The packages would start servers of their own, on the ports that people use. The tests want only the programs.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    trap '$as_root rm -f "$policy"' EXIT
fi

$as_root apt-get update -q
# shellcheck disable=SC2086 # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
