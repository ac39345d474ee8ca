"""What becomes of each field of a checkpoint's image settings that all image processors have."""

from foveate.modeling.common_fields import CONFIG
from foveate.modeling.fields import Factor, Honoured, NoEffect, Number, Refused, Table

_FORMAT = NoEffect("it is about how transformers holds pictures and gives them back")
PICTURES: Table = {
    "size": Honoured(dict[str, int | None]),
    "image_mean": Honoured(tuple[Number, Number, Number]),
    "image_std": Honoured(tuple[Factor, Factor, Factor]),
    "rescale_factor": Honoured(Number),
    "resample": Honoured(int | str),
    "do_convert_rgb": Honoured(bool),
    "do_resize": Honoured(bool),
    "do_rescale": Honoured(bool),
    "do_normalize": Honoured(bool),
    "image_processor_type": Honoured(str),
    "feature_extractor_type": Honoured(str),
    "do_center_crop": Refused(
        "cropped pictures, which the model does not take", (False,), "set it to false"
    ),
    "crop_size": NoEffect("do_center_crop decides, and must be false"),
    "default_to_square": NoEffect("pictures here are always resized to what the model takes"),
    "data_format": _FORMAT,
    "input_data_format": _FORMAT,
    "device": _FORMAT,
    "return_tensors": _FORMAT,
    "disable_grouping": _FORMAT,
    "image_seq_length": NoEffect("transformers does not read it"),
    "processor_class": NoEffect("it says who wrote the file"),
    "_processor_class": NoEffect("it says who wrote the file"),
    "auto_map": CONFIG["auto_map"],
    **dict.fromkeys(
        (
            "video_processor_type",
            "fps",
            "min_frames",
            "max_frames",
            "num_frames",
            "do_sample_frames",
            "return_metadata",
            "video_metadata",
        ),
        NoEffect("it is about videos, whose settings are read on their own"),
    ),
}
"""Those of pictures in preprocessor_config.json or processor_config.json."""
