#!/usr/bin/env bash
# The GPU study of docs/performance.md, on one GPU, in under nine minutes: a Markdown table, and JSON beside it.
#
#   benchmarks/gpu.sh [--out FOLDER] [--ijepa CHECKOUT]   CHECKOUT: a clone of the published I-JEPA code, timed beside ours
#   benchmarks/gpu.sh --rehearse [--out FOLDER] ...       the same at tiny sizes on the CPU: does the script work?
#
# No data set is needed: batches are ready-made, of real masks. Each part has a budget of seconds, after which it is ended
# and told as missing; the others go on.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=gpu-study checkout='' rehearse=''
while (($#)); do
    case $1 in
        --out) out=$2; shift 2 ;;
        --ijepa) checkout=$2; shift 2 ;;
        --rehearse) rehearse=1; shift ;;
        *) sed -n '2,8p' "$0"; exit 2 ;;
    esac
done
mkdir -p "$out" || exit 1
failed=0 results=()

part() { # name, seconds, what to run
    local name=$1 budget=$2
    shift 2
    echo "$name: at most $budget s" >&2
    rm -f "$out/$name".{json,log,svg} # of an earlier study; whatever else lies there is somebody's own
    local begun=$SECONDS
    if timeout --kill-after=5 "$budget" "$@" > "$out/$name.log" 2>&1; then
        echo "    $((SECONDS - begun)) s" >&2
        results+=("$out/$name.json")
    else
        echo "    MISSING: exit code $? after $((SECONDS - begun)) s; the end of $out/$name.log:" >&2
        tail -n 5 "$out/$name.log" >&2
        failed=1
    fi
}

if [[ -n $rehearse ]]; then # every part's own words, at a size that any CPU takes in a second; nothing is compiled
    export TORCHDYNAMO_DISABLE=1
    ijepa=(--set 'encoder={use: vit, width: 32, depth: 1, heads: 2, patch: 32, class_token: false, hidden: drop}')
    ijepa+=(--set 'predictor={use: ijepa, width: 16, depth: 1, heads: 2}')
    mae=(--set 'encoder={use: vit, width: 32, depth: 1, heads: 2, patch: 32, hidden: drop}')
    mae+=(--set 'predictor.width=16' --set 'predictor.depth=1' --set 'predictor.heads=2')
    less=(--set run.device=cpu --set run.precision=fp32 --steps 2 --rounds 1)
    size() { echo "run.micro=2"; }
else
    ijepa=() mae=() less=(--set run.device=cuda --steps 10 --rounds 4)
    size() { echo "run.micro=$1"; }
fi

bench() { # name, seconds, images a step, recipe, more words
    local name=$1 seconds=$2 images=$3
    shift 3
    part "$name" "$seconds" python -m sslzoo bench "$@" "${less[@]}" --set "$(size "$images")" --out "$out/$name.json" \
        --chart "$out/$name.svg"
}

eager=(--set run.compile=false)
bench vitb16      90 256 ijepa/vitb16_in1k "${ijepa[@]}" "${eager[@]}" --against ijepa/vitb16_in1k --against-set run.compile=true
bench vitl16      80 128 ijepa/vitl16_in1k "${ijepa[@]}"
bench vith14     100 128 ijepa/vith14_in1k "${ijepa[@]}"
bench mae-vitl16  70 256 mae/vitl16_in1k "${mae[@]}"
bench ddp         60 256 ijepa/vitb16_in1k "${ijepa[@]}" "${eager[@]}" --parallel ddp
bench fsdp        60 256 ijepa/vitb16_in1k "${ijepa[@]}" "${eager[@]}" --parallel fsdp
if [[ -n $checkout ]]; then
    part published 60 python "$here/published_ijepa.py" "$checkout" --out "$out/published.json" ${rehearse:+--rehearse}
fi
python "$here/gpu_table.py" ${results[@]+"${results[@]}"} || failed=1
exit $failed
