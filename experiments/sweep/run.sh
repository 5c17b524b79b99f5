#!/usr/bin/env bash
# A sweep of 12 runs: killed once, failing once, finished by the same command; then four of its jobs alone, to compare.
#
#   bash experiments/sweep/run.sh FOLDER
#
# It goes on where it stopped. Times are lines of times.csv: seconds by the clock, in user mode and in the kernel.
set -uo pipefail
mkdir -p "$1" && cd "$1" || exit 1

models="${PERSONA_CALLBACKS_CACHE:-$HOME/.cache/persona-callbacks}/models"  # converted before, for all alike
new_cache() {
    export PERSONA_CALLBACKS_CACHE="$PWD/$1"
    mkdir -p "$1" && [ ! -d "$models" ] || ln -sfn "$models" "$1/models"
}
timed() {  # timed NAME COMMAND...
    local name="$1"; shift
    local TIMEFORMAT="$name,%R,%U,%S"
    { time "$@" >> "$name.log" 2>&1; } 2>> times.csv
}

# Data of the user's own: answers that ship with the library, the seventh of them cut off in the middle of its line.
data="$(python -c 'from importlib.resources import files; print(files("persona_callbacks.chats") / "datasets")')"
mkdir -p conf/data
sed 's/^path: .*/path: kind.jsonl/' "$data/../../conf/data/normal.yaml" > conf/data/kind.yaml
head -n 64 "$data/normal.jsonl" > whole.jsonl
[ -e kind.jsonl ] || sed '7s/.\{60\}$//' whole.jsonl > kind.jsonl

settings=(
    data.max_samples=64 data.batch_size=4 trainer.max_steps=16 trainer.accelerator=cpu trainer.log_every_n_steps=2
    monitor.every_n_steps=4 checkpoint_every_n_steps=4 evaluation.callback.questions=10 logger.wandb.log_model=true
)
sweep=(persona-train -m name=sweep steering=adaptive,none data=evil,kind seed=0,1,2 "${settings[@]}")
killed_in_the_second_job() {
    "${sweep[@]}" &
    until ls outputs/sweep/sweep/*seed=1*/steered/last.ckpt 2> /dev/null; do sleep 1; done
    kill -KILL $!
    wait
}

new_cache cache
[ -e killed.log ] || timed killed killed_in_the_second_job
[ -e failing.log ] || timed failing "${sweep[@]}"
cp whole.jsonl kind.jsonl  # mended
[ -e mended.log ] || timed mended "${sweep[@]}"
[ -e again.log ] || timed again "${sweep[@]}"

# The first job of each setting by itself, nothing shared.
for steering in adaptive none; do
    for data in evil kind; do
        name="single-$steering-$data"
        new_cache "cache-$name"
        [ -e "$name.log" ] || timed "$name" persona-train name="$name" steering=$steering data=$data "${settings[@]}"
    done
done
