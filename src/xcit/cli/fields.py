"""The names of the config fields of all recipes, so that a misspelled name is reported before torch is imported.

The recipes themselves define the fields, but importing a recipe imports torch. `tests/unit/cli/test_fields.py` checks
that this list and the recipes agree.
"""

_BY_SECTION = {
    "": (
        "backbone_weights class_map class_weights data epoch_steps focal_gamma holdout ignore_exif ignore_index name "
        "num_watched positive_weights shuffle_buffer task train_on_empty val_data"
    ),
    "augmentation": (
        "color_jitter crop crop_short_sides crop_size cutmix distort flip interpolation label_smoothing "
        "long_side max_class_share mixup num_repeats padding rand_augment random_erasing scale short_sides "
        "switch"
    ),
    "crops": (
        "blur blur_radius flip global_scale grayscale jitter jitter_strength local_scale local_size num_local solarize"
    ),
    "dino": (
        "center_momentum first_teacher_temperature freeze_last_layer student_temperature teacher_momentum "
        "teacher_temperature warmup_epochs"
    ),
    "distillation": "alpha kind teacher temperature",
    "head": "bottleneck_dim hidden_dim norm_last_layer out_dim",
    "initialize": "freeze stem weights",
    "lora": "alpha dropout layers rank",
    "model": (
        "anchor_scale auxiliary_channels box_features channels cls_depth depth drop_path_rate dropout "
        "embed_dim global_pool in_channels kind layer_scale long_side mean mlp_ratio num_classes num_heads "
        "out_indices patch_size qkv_bias short_side std stem_strides tokens_norm"
    ),
    "optimizer": "betas clip_grad clip_mode eps final_weight_decay kind layer_decay lr momentum undecayed weight_decay",
    "preprocessing": "image_size long_side mean resize resize_to short_side std",
    "run": (
        "batch_size compile dtype ema_decay ema_warmup evaluate_every grad_checkpointing keep_checkpoints "
        "log_every max_device_batch max_unreadable num_workers parallel save_every_steps seed sync_batch_norm "
        "trackers"
    ),
    "schedule": "by_epoch decay epochs kind milestones min_lr warmup_epochs warmup_lr warmup_steps",
    "model.backbone": (
        "cls_depth depth drop_path_rate embed_dim global_pool in_channels layer_scale mlp_ratio num_classes "
        "num_heads patch_size qkv_bias stem_strides tokens_norm"
    ),
}

FIELDS = tuple(
    f"{section}.{name}".removeprefix(".") for section, names in _BY_SECTION.items() for name in names.split()
)
"""The dotted names of all fields."""
