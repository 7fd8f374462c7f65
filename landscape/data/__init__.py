"""Long-tailed image data: published profiles, selections and groups; digits, CIFAR files, arrays, images on disk; batches."""

from landscape.data.augmentation import TRANSFORMS
from landscape.data.batches import Batches
from landscape.data.dataset import Dataset, Groups, Split
from landscape.data.disk_images import DiskImages
from landscape.data.groups import GROUP_RULES, assign_groups
from landscape.data.mixing import Mixed, cutmix, mixup
from landscape.data.profiles import long_tailed_counts, select_examples
from landscape.data.registry import DATASETS, load_dataset
from landscape.data.sampling import SAMPLERS, build_sampler

__all__ = [
    "DATASETS",
    "GROUP_RULES",
    "SAMPLERS",
    "TRANSFORMS",
    "Batches",
    "Dataset",
    "DiskImages",
    "Groups",
    "Mixed",
    "Split",
    "assign_groups",
    "build_sampler",
    "cutmix",
    "load_dataset",
    "long_tailed_counts",
    "mixup",
    "select_examples",
]
