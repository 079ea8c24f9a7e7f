#!/bin/bash
# Both stages of CALM in an unmodified checkout of TinyLLaVA_Factory:
#
#   TINYLLAVA=TinyLLaVA_Factory DATA_PATH=pretrain.json IMAGE_PATH=images \
#       FINETUNE_DATA_PATH=finetune.json FINETUNE_IMAGE_PATH=images bash train_calm.sh [ARGUMENTS]
#
# Further arguments go to train.py in both stages, after those below, so that they win.
set -euo pipefail

: "${TINYLLAVA:?the folder of a checkout of TinyLLaVA_Factory}"
: "${DATA_PATH:?annotations of stage one}" "${IMAGE_PATH:?images of stage one}"
: "${FINETUNE_DATA_PATH:?annotations of stage two}" "${FINETUNE_IMAGE_PATH:?images of stage two}"

LLM_VERSION=${LLM_VERSION:-TinyLlama/TinyLlama-1.1B-Chat-v1.0}
VT_VERSION=${VT_VERSION:-openai/clip-vit-large-patch14-336}   # the anchor
VT_VERSION2=${VT_VERSION2:-facebook/dinov2-large}             # the augmenting tower
CN_VERSION=${CN_VERSION:-mlp2x_gelu}
CONV_VERSION=${CONV_VERSION:-llama}
SELECT_LAYER=${SELECT_LAYER:--1}      # layer of the anchor that is read; fusions end there
MODEL_MAX_LENGTH=${MODEL_MAX_LENGTH:-2048}
OUTPUT=${OUTPUT:-checkpoints/calm}    # becomes $OUTPUT-pretrain and $OUTPUT-finetune
PROCESSES=${PROCESSES:-1}
PYTHON=${PYTHON:-python}

launch() {
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" \
        -m cmibq.launch --host tinyllava -- "$TINYLLAVA/tinyllava/train/train.py" \
        --model_name_or_path "$LLM_VERSION" \
        --vision_tower "calm:$VT_VERSION" \
        --vision_tower2 "calm:$VT_VERSION2" \
        --connector_type "$CN_VERSION" \
        --mm_vision_select_layer "$SELECT_LAYER" \
        --image_aspect_ratio square \
        --model_max_length "$MODEL_MAX_LENGTH" \
        --training_recipe calm \
        --tune_type_connector full \
        --bf16 True \
        --gradient_checkpointing True \
        --optim adamw_torch \
        --weight_decay 0.01 \
        --warmup_ratio 0.03 \
        --lr_scheduler_type cosine \
        --logging_steps 1 \
        --save_strategy no \
        --lazy_preprocess True \
        --report_to none \
        "$@"
}

# Stage one: the fusions (1e-4) and the connector (1e-3), everything else frozen.
launch --data_path "$DATA_PATH" --image_folder "$IMAGE_PATH" --conv_version pretrain \
    --tune_type_llm frozen --tune_type_vision_tower calm \
    --learning_rate 1e-4 --mm_projector_lr 1e-3 --num_train_epochs 3 \
    --per_device_train_batch_size 32 --output_dir "$OUTPUT-pretrain" "$@"

# Stage two: language model and connector; the composed tower comes from stage one and stays.
launch --data_path "$FINETUNE_DATA_PATH" --image_folder "$FINETUNE_IMAGE_PATH" \
    --conv_version "$CONV_VERSION" --pretrained_model_path "$OUTPUT-pretrain" \
    --tune_type_llm full --tune_type_vision_tower frozen --group_by_modality_length True \
    --learning_rate 2e-5 --num_train_epochs 1 \
    --per_device_train_batch_size 8 --output_dir "$OUTPUT-finetune" "$@"
