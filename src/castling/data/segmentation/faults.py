"""The kinds of faults of masks: which are errors, and what to do about each."""

from __future__ import annotations

from collections.abc import Mapping

from castling.data.faults import Fault, image_fault, note_fault, set_fault

#: By the names that the readers and the check of all masks use.
FAULTS: Mapping[str, Fault] = {
    # files of annotations and lists
    "not_whole": set_fault(
        "annotation file that is not whole",
        "it was cut off or is of another kind: copy or export it again",
    ),
    "no_section": set_fault(
        "missing or malformed part of the annotation file",
        "it needs lists images, annotations (with segments_info) and categories, and their fields",
    ),
    "double_category": set_fault(
        "category id or name used twice", "give every category one id and one name of its own"
    ),
    "unknown_category": set_fault("segment of a class that is not listed", "list the class"),
    # pairs
    "no_mask": image_fault("image without a mask", "add its mask, or remove the image"),
    "no_image": image_fault("mask without an image", "add its image, or remove the mask"),
    "second_mask": note_fault(
        "further mask of an image that has one", "it is left out; the plainest name is taken"
    ),
    "double_image": set_fault(
        "two images that one mask would belong to", "give every image a name of its own"
    ),
    "unannotated": image_fault(
        "name in a list without a mask", "add its mask, or remove the name from the list"
    ),
    "empty_list": note_fault(
        "list of a split of which nothing is annotated", "the split is not used"
    ),
    "unlisted": note_fault(
        "mask that no list of a split names", "it is left out; add it to a list"
    ),
    # mask files
    "unreadable": set_fault(
        "mask that cannot be read", "remove it with its image, or put a sound copy back"
    ),
    "lossy": set_fault(
        "mask in a format that changes pixels (JPEG)",
        "its labels are lost at every edge: export the masks again as PNG",
    ),
    "other_size": set_fault(
        "mask of another size than its image",
        "resize the mask to the image with nearest-neighbour interpolation, or export it again",
    ),
    "rotated": note_fault(
        "image that its EXIF rotates or mirrors",
        "it is shown in the orientation that has the mask's size, upright where both have; store "
        "it upright to be sure",
    ),
    "rgb": set_fault(
        "mask of colours without a table of colours",
        'name the class of every colour: source.colours {"128,64,128": road, …}, or class_dict.csv '
        "(name,r,g,b) beside the folders; or write class numbers in one channel",
    ),
    "alpha": set_fault(
        "mask with transparent pixels", "it cannot be told what they mean: export it without alpha"
    ),
    "opaque": note_fault("mask with an alpha channel", "all is opaque, so it is dropped"),
    # what masks hold
    "wide": set_fault(
        "mask of 16 bits with numbers above 255",
        "they seem to be ids of instances: write class numbers from 0 to 254, in 8 bits",
    ),
    "binary": set_fault(
        "masks that hold 0 and 255 alone",
        "255 means no class here: write 1 in its place, or name both as colours: "
        'source.colours {"0,0,0": background, "255,255,255": object}',
    ),
    "unknown_value": set_fault(
        "mask with a number that is no class",
        "name more classes (source.classes), say that it means none (source.ignore), or correct "
        "the mask",
    ),
    "unknown_colour": set_fault(
        "mask with a colour that is not in the table of colours",
        "add the colour; if it lies at edges, the mask was resized or painted smoothly: export it "
        "again",
    ),
    "unknown_segment": set_fault(
        "mask with a segment that its annotation does not list",
        "mask and annotation are not of one export: export both again",
    ),
    "all_ignored": Fault(
        "mask without a pixel of any class",
        "error",
        "nothing can be learnt from it: draw it anew or remove it",
        "images",
        kept=0.1,
    ),
    "palette": set_fault(
        "mask whose palette gives other numbers to the colours than masks before it",
        "its numbers mean other classes: write all masks with one palette, or name the class of "
        "every colour (source.colours), which counts before the numbers",
    ),
    "other_palette": note_fault(
        "mask whose palette shows a class in another colour", "numbers count, not colours"
    ),
    # splits and classes
    "overlap": note_fault(
        "image of one split that is also in another",
        "remove it from one of them, or the figures of the held-out split will be too good",
    ),
    "absent_class": note_fault(
        "class without a pixel in training", "it cannot be learnt; remove it or add images"
    ),
}
