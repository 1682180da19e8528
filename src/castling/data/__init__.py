"""Images with targets: sources, splits, checks, augmentation and loaders."""

from castling.data.config import (
    DataConfig,
    LoaderConfig,
    SplitConfig,
    data_config_from_dict,
    data_config_to_dict,
)
from castling.data.dataset import ImageSet
from castling.data.decode import image_tensor, open_image, pillow_image, to_rgb
from castling.data.erasing import erase_batch
from castling.data.errors import DataError, plain_data_errors
from castling.data.formats import image_endings, is_image
from castling.data.legacy import upgrade_data
from castling.data.mixing import MixConfig, mixes, mixup_batch
from castling.data.module import BatchLoader, DataModule
from castling.data.problems import (
    DataReport,
    FaultyDataError,
    Problem,
    ReportingSource,
    check_source,
)
from castling.data.registry import (
    DataInfo,
    FileSource,
    Source,
    SourceConfig,
    list_sources,
    open_source,
    register_source,
    source_config_class,
    source_problems,
    source_to_dict,
)
from castling.data.sample import Batch, Sample, stack_samples
from castling.data.sampler import BatchKey, EpochBatches, sample_keys
from castling.data.sources import (
    CocoConfig,
    DigitScenesConfig,
    DigitsConfig,
    FolderConfig,
    TorchvisionConfig,
    VocConfig,
    YoloConfig,
    source_from,
    split_shorthand,
)
from castling.data.split_record import SplitRecord, read_split_record
from castling.data.transforms import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
    DetectionEvalTransform,
    DetectionTrainTransform,
    DetectionTransformConfig,
    SegmentationEvalTransform,
    SegmentationTrainTransform,
    SegmentationTransformConfig,
    Transform,
    TransformConfig,
)

__all__ = [
    "Batch",
    "BatchKey",
    "BatchLoader",
    "ClassificationEvalTransform",
    "ClassificationTrainTransform",
    "ClassificationTransformConfig",
    "CocoConfig",
    "DataConfig",
    "DataError",
    "DataInfo",
    "DataModule",
    "DataReport",
    "DetectionEvalTransform",
    "DetectionTrainTransform",
    "DetectionTransformConfig",
    "DigitScenesConfig",
    "DigitsConfig",
    "EpochBatches",
    "FaultyDataError",
    "FileSource",
    "FolderConfig",
    "ImageSet",
    "LoaderConfig",
    "MixConfig",
    "Problem",
    "ReportingSource",
    "Sample",
    "SegmentationEvalTransform",
    "SegmentationTrainTransform",
    "SegmentationTransformConfig",
    "Source",
    "SourceConfig",
    "SplitConfig",
    "SplitRecord",
    "TorchvisionConfig",
    "Transform",
    "TransformConfig",
    "VocConfig",
    "YoloConfig",
    "check_source",
    "data_config_from_dict",
    "data_config_to_dict",
    "erase_batch",
    "image_endings",
    "image_tensor",
    "is_image",
    "list_sources",
    "mixes",
    "mixup_batch",
    "open_image",
    "open_source",
    "pillow_image",
    "plain_data_errors",
    "read_split_record",
    "register_source",
    "sample_keys",
    "source_config_class",
    "source_from",
    "source_problems",
    "source_to_dict",
    "split_shorthand",
    "stack_samples",
    "to_rgb",
    "upgrade_data",
]
