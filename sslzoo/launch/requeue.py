"""Is a job queued again when its processes have ended? Decided in the batch script, where no dead process prevents it.

It is, unless all is done, a process told an error of its own, SLURM has decided otherwise (cancelled, requeued by
hand), or attempts in a row saved nothing: two that did no step, five that did some. So lost processes (a node, a kill,
a hang that the time-out of collectives ended) and runs that saved in time after a signal go on by themselves.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from sslzoo.run.state import HINT

BARREN = "barren.txt"  # in the run folder: a line for each attempt in a row that saved nothing

_BEFORE = f"""\
set +eu; set +o pipefail  # whatever the lines of a profile's setup have set
run=${{runs[${{SLURM_ARRAY_TASK_ID:-0}}]}}
job=$SLURM_JOB_ID  # of an array's last element it is the array's own, which would mean all elements
[ -z "${{SLURM_ARRAY_TASK_ID-}}" ] || job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
trap : TERM HUP USR1 USR2  # the processes save and leave; this script waits for them and decides
starts() {{ cat "$run/attempts.jsonl" 2> /dev/null | wc -l; }}
number() {{ sed -n "s/.*\\"$2\\": \\([0-9][0-9]*\\).*/\\1/p" "$run/$1" 2> /dev/null | tail -n 1; }}
fail() {{ echo "$1"; [ -e "$run/failure.txt" ] || echo "$1" > "$run/failure.txt"; exit "$code"; }}
ask() {{  # until SLURM's controller answers, for five minutes at most
    local pause
    for pause in 0 1 4 10 15 30 60 60 60 60; do
        sleep $pause
        told=$("$@" 2>&1) && return 0
        case $told in *nvalid\\ job*|*pending*|*complet*|*disabled*|*denied*) return 1 ;; esac
        echo "$1: $told"
    done
    fail "SLURM did not answer for five minutes, so the job is not queued again: $told"
}}
hint() {{ head -n 1 "$run/{HINT}" 2> /dev/null | grep . || echo "told no error"; }}
rm -f "$run/failure.txt" "$run/{HINT}"
started=$(starts)
"""

_AFTER = f"""\
code=$?
[ "$code" -ne 0 ] || exit 0
# On NFS a name that was not there stays so for a minute, though a process on another node has made it by now; but not
# once this node has made a file of its own there.
{{ : > "$run/.seen" && rm -f "$run/.seen"; }} 2> /dev/null
[ ! -e "$run/failure.txt" ] || exit "$code"  # an error of its own
ask squeue --noheader --jobs "$job" --format %T && now=${{told##*$'\\n'}} || now="gone: $told"
[ "$now" = RUNNING ] || {{ echo "job $job is ${{now:-gone}}; SLURM has decided"; exit "$code"; }}
from=$(number attempts.jsonl from) step=$(number state.json step)
did="did no step" most=2
if [ "$(starts)" -gt "$started" ]; then
    [ "${{step:-0}}" -le "${{from:-0}}" ] || {{ did="saved nothing" most=5; }}
    [ -z "$(find "$run/checkpoints" -name 'step-*.safetensors' -newer "$run/attempts.jsonl" 2> /dev/null)" ] || did=
fi
if [ -z "$did" ]; then
    rm -f "$run/{BARREN}"
else
    echo "$did (exit code $code)" >> "$run/{BARREN}"
    [ "$(grep -c "^$did" "$run/{BARREN}")" -lt $most ] ||
        fail "$most attempts since the last save $did; the last one: $(hint) (exit code $code)"
fi
ask scontrol requeue "$job" || case $told in
    *pending*) ;;
    *) fail "not done, but SLURM does not requeue: $told" ;;
esac
echo "requeue of job $job: ${{told:-asked for}}"
exit "$code"
"""


def before(folders: Sequence[Path]) -> Sequence[str]:
    """Lines of shell that go before the processes of a job, or of an array with a run folder an element."""
    return [f"runs=({' '.join(shlex.quote(str(folder)) for folder in folders)})", *_BEFORE.splitlines()]


def after() -> Sequence[str]:
    """Lines of shell that follow at once upon the processes."""
    return _AFTER.splitlines()
