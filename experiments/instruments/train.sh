#!/usr/bin/env bash
# Trains the adapters of the study: train.sh DATA VECTORS OUTPUTS
#
# DATA is a folder of experiments/separable_task/tagged_chats.py, VECTORS one of persona-extract. It can be interrupted
# and run again: finished runs are skipped, an unfinished one goes on from its last checkpoint. RUNNER is put before
# each command, for a queue (RUNNER="flock queue.lock"). bf16 is 2.5 times as fast as float32 on the processor used.
# STEPS is how many each takes, TRAITS which of the three are trained.
DATA=$1 VECTORS=$2 OUTPUTS=$3 STEPS=${STEPS:-25}
run() { # TRAIT DATA METHOD [OVERRIDE...]
    local trait=$1 data=$2 method=$3 folder=$OUTPUTS/$1/$2/$3
    shift 3
    grep -qs '"finished": true' "$folder/state.json" && return
    mkdir -p "$folder"
    ${RUNNER:-} persona-train "trait=[]" "vectors=[$VECTORS/$trait.safetensors]" "name=$data" "data.path=$DATA/$data.jsonl" \
        evaluation=none logger=csv sample_answers=0 trainer.max_steps=$STEPS trainer.max_epochs=16 \
        trainer.precision=bf16-mixed trainer.accelerator=cpu monitor.every_layer=false \
        monitor.every_n_steps=$STEPS monitor.pairs=0 "hydra.run.dir=$folder" "$@" >"$folder.log" 2>&1 ||
        echo "failed: $folder.log"
}
adaptive=(steering=adaptive monitor.every_n_steps=5 steering.callback.coefficient.start.samples=16)
preference=("${adaptive[@]}" steering.callback.coefficient.sensor=preference monitor.pairs=8)
constant() { echo steering=constant "steering.callback.coefficient=$1"; }

for trait in ${TRAITS:-evil sycophancy hallucination}; do
    run $trait $trait-100 none steering=none
    run $trait $trait-100 preference "${preference[@]}"
    run $trait $trait-100 constant-0.8 $(constant 0.8)
    run $trait $trait-50 none steering=none
    [ $trait = evil ] && run evil normal none steering=none
    run $trait $trait-100 adaptive "${adaptive[@]}"
    run $trait $trait-100 constant-0.4 $(constant 0.4)
    run $trait $trait-25 none steering=none
    [ $trait = evil ] || continue
    # The styles have 40 chats: batches of 4 make as many steps at half the time, and as large ones, since Adam scales them.
    for style in emphatic warm formal poetic terse; do
        run evil $style none steering=none data.batch_size=4
    done
done
