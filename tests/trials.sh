#!/usr/bin/env bash
# Every test that attacks a promise, and one table of what was tried: tests/trials.sh [--seed N] [--large] [CLASS...]
#
# Without --seed there is a new one for each run. --large takes hours instead of minutes. Classes are those of the table
# below; schemathesis, which needs python3 and PyPI, is tried where it is named or --large. What a test says goes to a file
# that is kept if it fails. Exit code 1 if anything failed.
#
# How much is tried stands in each test's own report, not here, so the table tells of what really ran. Of a class that
# reports nothing, each test is a trial.
set -euo pipefail
cd "$(dirname "$0")/.."

seed=$((RANDOM * 32768 + RANDOM))
large=
chosen=()
while [ $# -gt 0 ]; do
    case "$1" in
    --seed)
        seed=${2:?"--seed wants a number"}
        shift
        ;;
    --large) large=1 ;;
    -*)
        echo "usage: $0 [--seed N] [--large] [CLASS...]" >&2
        exit 64
        ;;
    *) chosen+=("$1") ;;
    esac
    shift
done
case "$seed" in
'' | *[!0-9]*)
    echo "$0: --seed wants a number, and $seed is none" >&2
    exit 64
    ;;
esac

# class, test, the one function of it (or nothing: all), how many in a large run, what sets the seed
classes="\
power_loss  power_loss  -                                          TRADEPOST_POWER_LOSSES=200000 TRADEPOST_POWER_LOSSES_SEED
faults      faults      -                                          -                             -
damage      damage      -                                          TRADEPOST_DAMAGES=200000      TRADEPOST_DAMAGES_SEED
disk        disk        -                                          -                             -
crash       crash       what_was_acknowledged_survives_kill_9      TRADEPOST_CRASH_ROUNDS=200    -
history     history     -                                          TRADEPOST_HISTORIES=5000      TRADEPOST_HISTORIES_SEED
model       model       -                                          TRADEPOST_MODELS=10000        TRADEPOST_MODELS_SEED
fold        fold        -                                          -                             -
day         day         -                                          -                             -
sync_faults sync_faults whatever_fails_central_ends_up             TRADEPOST_FAULTS=300          TRADEPOST_FAULTS_SEED
fleet       fleet       -                                          TRADEPOST_FLEETS=10000        TRADEPOST_FLEETS_SEED
identity    sync_identity -                                        -                             -
replication replication -                                          -                             -
strangers   sync_postgres -                                        -                             -
registry    sync_redis  -                                          -                             -
scripts     sync_redis_scripts -                                   -                             -
surroundings surroundings -                                        -                             -
hostile     hostile     -                                          -                             -
browser     browser     -                                          -                             -
tls         tls         -                                          -                             -
verify      verify      -                                          -                             -
refusals    refusals    -                                          -                             -
soak        soak        -                                          TRADEPOST_SOAK_SECONDS=1800   TRADEPOST_SOAK_SEED"

is_chosen() {
    [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" $1 "* ]]
}
for class in "${chosen[@]}"; do
    if [ "$class" != fuzz ] && [ "$class" != schemathesis ] && ! grep -q "^$class " <<<"$classes"; then
        echo "$0: there is no class $class; there are $(awk '{print $1}' <<<"$classes" | tr '\n' ' ')fuzz schemathesis" >&2
        exit 64
    fi
done

work=$(mktemp -d)
report=$work/report
rows=$work/rows
again=$work/again
touch "$rows" "$again"
failed=

# row CLASS TRIALS FAILURES SEED SECONDS
row() {
    printf '%-12s %10s %10s %12s %9.1f\n' "$@" >>"$rows"
    printf '%s: %s trials, %s failures, %.0f s\n' "$1" "$2" "$3" "$5" >&2
}

# The sum of a field over all lines of the report; the lines are our own, one flat object each.
sum() {
    sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" "$report" | awk '{ sum += $1 } END { print sum + 0 }'
}

# The sum of the numbers in the log's lines that match, by the pattern's only group.
sum_log() {
    sed -n "s/$1/\\1/p" "$log" | awk '{ sum += $1 } END { print sum + 0 }'
}

# run CLASS SEEDED COMMAND...: runs it with the environment that is set, and takes its report for a row
run() {
    local class=$1 seeded=$2 log=$work/$1.log trials failures shown began code=0
    shift 2
    : >"$report"
    echo "$class ..." >&2
    began=$SECONDS
    env TRADEPOST_TRIALS_REPORT="$report" "$@" >"$log" 2>&1 || code=$?
    case "$class" in
    fuzz)
        trials=$(sum_log '^stat::number_of_executed_units: *\([0-9]*\).*')
        failures=0
        ;;
    schemathesis)
        trials=$(sum_log '^ *\([0-9]*\) generated.*')
        failures=0
        ;;
    *)
        trials=$(sum trials)
        failures=$(sum failures)
        if [ ! -s "$report" ]; then
            failures=$(sum_log '^test result:.* \([0-9]*\) failed;.*')
            trials=$((failures + $(sum_log '^test result:.* \([0-9]*\) passed;.*')))
        fi
        ;;
    esac
    # What fails without a word, or tries nothing, has failed as well.
    if [ "$code" -ne 0 ] || [ "$trials" -eq 0 ]; then
        [ "$failures" -ne 0 ] || failures=1
    fi
    shown=-
    [ "$seeded" = - ] || shown=$seed
    row "$class" "$trials" "$failures" "$shown" "$((SECONDS - began))"
    if [ "$failures" -ne 0 ]; then
        failed=1
        echo "$class: $*" >>"$again"
        echo "    what it said: $log" >>"$again"
    fi
}

# Built first, so that no row's time holds it.
tests/install-servers.sh >&2
builds=()
while read -r class test _; do
    is_chosen "$class" && [ -e "tests/$test.rs" ] && builds+=(--test "$test")
done <<<"$classes"
[ ${#builds[@]} -eq 0 ] || cargo test --locked --no-run "${builds[@]}" >&2
while read -r class test function count seeded; do
    is_chosen "$class" || continue
    if [ ! -e "tests/$test.rs" ]; then
        echo "$0: there is no tests/$test.rs" >&2
        exit 64
    fi
    settings=()
    [ "$seeded" = - ] || settings+=("$seeded=$seed")
    [ -z "$large" ] || [ "$count" = - ] || settings+=("$count")
    [ "$function" != - ] || function=
    run "$class" "$seeded" "${settings[@]}" cargo test --locked --test "$test" -- ${function:+"$function"} --nocapture \
        </dev/null
done <<<"$classes"
if is_chosen fuzz; then
    seconds=10
    [ -z "$large" ] || seconds=600
    run fuzz TRADEPOST_FUZZ_SEED TRADEPOST_FUZZ_SEED="$seed" fuzz/run.sh "$seconds" </dev/null
fi
if [ -n "$large" ] && [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]-} " == *" schemathesis "* ]]; then
    run schemathesis --seed tests/schemathesis.sh --seed "$seed" </dev/null
fi

printf '%-12s %10s %10s %12s %9s\n' 'fault class' trials failures seed seconds
cat "$rows"
if [ -n "$failed" ]; then
    printf '\nTo repeat what failed:\n'
    cat "$again"
    exit 1
fi
rm -rf "$work"
