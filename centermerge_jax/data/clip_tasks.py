"""The twenty image classification tasks on which CLIP models are merged.

The first eight are those of Ilharco et al. 2023 (mlfoundations/task_vectors), six and
six more those of Wang et al. 2024 (nik-dim/tall_masks), in the order of the latter.
Names, orders of labels and splits were compared with TFDS 4.9.10; the numbers of test
images are the denominators of the accuracies that nik-dim/tall_masks publishes.
"""

from typing import Any

from centermerge_jax.data.specs import ImageFolder, Splits, TaskSpec


def _task(title: str, classes: int, tests: int, **fields: Any) -> TaskSpec:
    return TaskSpec(
        name=title.lower(),
        title=title,
        kind="image",
        classes=classes,
        tests=tests,
        **fields,
    )


# The scripts that prepared the benchmark call the folder of the test images `val`.
_TEST_IN_VAL = Splits("train", test="val")

EIGHT: tuple[TaskSpec, ...] = (
    _task(
        "Cars",
        196,
        8041,
        tfds="cars196",
        hub="tanganke/stanford_cars",
        note="The host of the archives has been gone since 2023 "
        "(tensorflow/datasets issue 4932): TFDS needs copies of them in its "
        "download folder.",
    ),
    _task(
        "DTD",
        47,
        1880,
        tfds="dtd",
        folder=ImageFolder("dtd", _TEST_IN_VAL),
        hub="tanganke/dtd",
        splits=Splits(validation="validation"),
        note="TALL-masks checkpoints from before 13 December 2024 have seen the test "
        "images (nik-dim/tall_masks issue 1): report this task apart. TFDS has the "
        "first of the ten published partitions, which is what is used.",
    ),
    _task(
        "EuroSAT",
        10,
        2700,
        why_not="eurosat/rgb has its 27,000 images in one split; the benchmark tests "
        "on 270 of each class, which a script drew without a seed",
        folder=ImageFolder("EuroSAT_splits", Splits("train", "test", "val")),
        hub="tanganke/eurosat",
        note="Everybody who ran the script has other test images.",
    ),
    _task(
        "GTSRB",
        43,
        12630,
        why_not="visual_domain_decathlon/gtsrb has no labels for its test images (all "
        "are -1), and shrinks all images to 72 pixels",
        folder=ImageFolder("gtsrb"),
        hub="tanganke/gtsrb",
        note="The benchmark fits to the 26,640 images of GTSRB-Training_fixed.zip, not "
        "to the 39,209 of the final training set. The official test images lie in one "
        "folder; sort them into folders by the ClassId of GT-final_test.csv.",
    ),
    _task("MNIST", 10, 10000, tfds="mnist", hub="ylecun/mnist"),
    _task(
        "RESISC45",
        45,
        6300,
        why_not="resisc45 has its 31,500 images in one split; the benchmark tests on "
        "those of resisc45-test.txt (Neumann et al. 2019, arXiv:1911.06721)",
        folder=ImageFolder("resisc45", Splits("train", "test", "val")),
        hub="tanganke/resisc45",
    ),
    _task(
        "SVHN", 10, 26032, tfds="svhn_cropped", hub="ufldl-stanford/svhn/cropped_digits"
    ),
    _task(
        "SUN397",
        397,
        19850,
        tfds="sun397/standard-part1-120k",
        folder=ImageFolder("sun397", _TEST_IN_VAL),
        hub="tanganke/sun397",
        # TFDS has /j/jail/indoor before /j/jail_cell; the benchmark's folders, sorted,
        # are j_jail_cell and j_jail_indoor.
        relabel=((206, 207), (207, 206)),
        note="Training_01.txt and Testing_01.txt; TFDS shrinks their images to "
        "120,000 pixels, compresses them again and leaves two out: image "
        "folders of the originals are read rather.",
    ),
)
"""The first eight."""

SIX_MORE: tuple[TaskSpec, ...] = (
    _task("STL10", 10, 8000, tfds="stl10", hub="tanganke/stl10"),
    _task(
        "OxfordIIITPet",
        37,
        3669,
        tfds="oxford_iiit_pet",
        hub="timm/oxford-iiit-pet",
        note="TFDS encodes a dozen damaged images again.",
    ),
    _task(
        "Flowers102",
        102,
        6149,
        tfds="oxford_flowers102",
        hub="dpdl-benchmark/oxford_flowers102",
        note="Fitted to the 1,020 images of `train`; those of `validation` are "
        "not used.",
    ),
    _task("CIFAR100", 100, 10000, tfds="cifar100", hub="tanganke/cifar100"),
    _task(
        "PCAM",
        2,
        32768,
        tfds="patch_camelyon",
        hub="1aurent/PatchCamelyon",
        note="Chosen on 5,000 images of `train`; those of `validation` are not used.",
    ),
    _task(
        "FER2013",
        7,
        7178,
        why_not="TFDS has no such set",
        folder=ImageFolder("fer2013"),
        hub="Jeneral/fer-2013",
        note="Labels are angry, disgust, fear, happy, sad, surprise, neutral; "
        "folders sorted by name, and FusionBench, have neutral fifth.",
    ),
)
"""What makes fourteen of them."""

LAST_SIX: tuple[TaskSpec, ...] = (
    _task("CIFAR10", 10, 10000, tfds="cifar10", hub="tanganke/cifar10"),
    _task(
        "Food101",
        101,
        25250,
        tfds="food101",
        folder=ImageFolder("food101"),
        hub="ethz/food101",
        splits=Splits(test="validation"),
        # TFDS has cheesecake before cheese_plate; sorted, the underscore is first.
        relabel=((16, 17), (17, 16)),
        note="What TFDS calls validation is the test split of the authors.",
    ),
    _task(
        "FashionMNIST",
        10,
        10000,
        tfds="fashion_mnist",
        hub="zalando-datasets/fashion_mnist",
    ),
    _task(
        "RenderedSST2",
        2,
        1821,
        why_not="TFDS has the sentences (glue/sst2), not the images",
        folder=ImageFolder("rendered-sst2"),
        hub="nateraw/rendered-sst2",
    ),
    _task(
        "EMNIST",
        10,
        40000,
        tfds="emnist/digits",
        note="The digits, 240,000 and 40,000 of them; FusionBench's EMNIST are "
        "the letters. Images lie on their side, in TFDS as in the "
        "benchmark.",
    ),
    _task("KMNIST", 10, 10000, tfds="kmnist", hub="tanganke/kmnist"),
)
"""What makes twenty of them."""
