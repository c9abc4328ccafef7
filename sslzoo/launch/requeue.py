"""Is a job queued again when its processes have ended? Decided in the batch script, where no dead process prevents it.

It is, unless all is done, a process told an error of its own, SLURM has decided otherwise (cancelled, requeued by
hand), or attempts in a row saved nothing: two that did no step, five that did some. So lost processes (a node, a kill,
a hang that the time-out of collectives ended) and runs that saved in time after a signal go on by themselves.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

BARREN = "barren.txt"  # in the run folder: a line for each attempt in a row that saved nothing

_BEFORE = """\
run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
trap : TERM HUP USR1 USR2  # the processes save and leave; this script waits for them and decides
starts() { cat "$run/attempts.jsonl" 2> /dev/null | wc -l; }
number() { sed -n "s/.*\\"$2\\": \\([0-9][0-9]*\\).*/\\1/p" "$run/$1" 2> /dev/null | tail -n 1; }
fail() { echo "$1"; [ -e "$run/failure.txt" ] || echo "$1" > "$run/failure.txt"; exit "$code"; }
rm -f "$run/failure.txt"
started=$(starts)
"""

_AFTER = f"""\
code=$?
[ "$code" -ne 0 ] || exit 0
[ ! -e "$run/failure.txt" ] || exit "$code"  # an error of its own
now=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T 2> /dev/null | head -n 1)
[ "$now" = RUNNING ] || {{ echo "job $SLURM_JOB_ID is ${{now:-gone}}: SLURM has decided"; exit "$code"; }}
from=$(number attempts.jsonl from) step=$(number state.json step) saved=$(number state.json saved)
most=2 did="did no step"
if [ "$(starts)" -gt "$started" ] && [ "${{step:-0}}" -gt "${{from:-0}}" ]; then
    most=5 did="saved nothing"
fi
if [ $most = 5 ] && [ "${{saved:-0}}" -gt "${{from:-0}}" ]; then
    rm -f "$run/{BARREN}"
else
    echo "exit code $code" >> "$run/{BARREN}"
    [ "$(wc -l < "$run/{BARREN}")" -lt $most ] ||
        fail "the last $most attempts $did and told no error (exit code $code)"
fi
told=$(scontrol requeue "$SLURM_JOB_ID" 2>&1) || case $told in
    *pending*) ;;
    *) fail "not done, but SLURM does not requeue: $told" ;;
esac
echo "requeue of job $SLURM_JOB_ID: ${{told:-asked for}}"
exit "$code"
"""


def before(folders: Sequence[Path]) -> Sequence[str]:
    """Lines of shell that go before the processes of a job, or of an array with a run folder an element."""
    return [f"runs=({' '.join(shlex.quote(str(folder)) for folder in folders)})", *_BEFORE.splitlines()]


def after() -> Sequence[str]:
    """Lines of shell that follow at once upon the processes."""
    return _AFTER.splitlines()
