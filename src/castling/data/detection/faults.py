"""The kinds of faults of annotated objects: which are errors, and what to do about each."""

from __future__ import annotations

from collections.abc import Mapping

from castling.data.faults import Fault, image_fault, note_fault, object_fault, set_fault

#: By the names that the readers use. The comments number the kinds as the documentation does.
FAULTS: Mapping[str, Fault] = {
    # 1, 2: the file as a whole
    "not_whole": set_fault(
        "annotation file that is not whole",
        "it was cut off or is of another kind: copy or export it again",
    ),
    "no_section": set_fault(
        "missing or malformed part of the annotation file",
        "it needs lists images, annotations and categories of objects, and all their fields",
    ),
    "not_names": set_fault(
        "class names that cannot be read",
        "give names as a list, or as a mapping from number to name",
    ),
    # 3 to 7: numbers and names that things are known by
    "double_image_id": set_fault(
        "image id used twice", "give every image its own id, or remove the second entry"
    ),
    "double_object_id": note_fault(
        "annotation id used twice",
        "the later ones get new ids; remove objects that are listed twice",
    ),
    "double_object": note_fault("object listed twice", "the second is left out"),
    "double_category": set_fault(
        "category id or name used twice", "give every category one id and one name of its own"
    ),
    "unknown_image": object_fault(
        "annotation of an image that is not listed", "list the image, or remove the annotation"
    ),
    "unknown_category": object_fault(
        "object of a class that is not listed", "list the class, or remove the object"
    ),
    # 8 to 12: image files
    "no_file": image_fault("image file missing", "put the file back, or remove its entry"),
    "unannotated": note_fault(
        "image without an annotation file",
        "it is left out; a file without objects makes it an image without objects",
    ),
    "empty_list": note_fault(
        "list of a split of which nothing is annotated", "the split is not used"
    ),
    "unlisted": note_fault(
        "annotation file that no list of a split names", "it is left out; add it to a list"
    ),
    "background": note_fault(
        "image without a label file", "it is taken as an image without objects"
    ),
    "double_file": set_fault("image file listed twice", "merge the entries into one"),
    "no_size": note_fault("image without width and height", "they are read from the file"),
    "other_size": set_fault(
        "image whose file has another size than stated",
        "the boxes belong to the stated size: put the original file back, or scale the boxes",
    ),
    "rotated": note_fault(
        "image that its EXIF rotates or mirrors",
        "it is shown in the orientation that has the stated size, upright where both have; store "
        "it upright to be sure",
    ),
    # 13 to 17: boxes
    "not_numbers": object_fault("box that is not 4 finite numbers", "correct or remove it"),
    "no_extent": object_fault("box with width or height 0 or below", "correct or remove it"),
    "partly_outside": note_fault("box that reaches out of its image", "it is clipped"),
    "outside": object_fault("box wholly outside its image", "correct or remove it"),
    "corners": set_fault(
        "box that seems to be x1, y1, x2, y2",
        "COCO wants x, y, width, height: write width = x2 - x1 and height = y2 - y1",
    ),
    "normalised": set_fault(
        "box that seems to be a share of the image's sides",
        "COCO and VOC want pixels: multiply by width and height",
    ),
    "pixels": set_fault(
        "box that seems to be in pixels",
        "YOLO wants centre, width and height as shares in [0, 1]: divide by the image's sides",
    ),
    # 18 to 20, 22: masks
    "bad_polygon": object_fault(
        "polygon of fewer than 6 or an odd number of numbers", "correct or remove it"
    ),
    "bad_rle": object_fault(
        "run-length mask that does not fit its image", "encode it again in the image's size"
    ),
    "no_mask": note_fault(
        "object without a mask among others with masks", "the masks are not used; boxes are"
    ),
    "empty_mask": Fault(
        "mask without a pixel",
        "error",
        "it is kept as it is; draw it anew or remove it",
        "objects",
        kept=0.1,
    ),
    "other_mask": Fault(
        "mask that disagrees with its box",
        "error",
        "both are kept as they are; correct one of them",
        "objects",
        kept=0.1,
    ),
    "crowd_without_mask": note_fault("crowd without a run-length mask", "its box stands for it"),
    "crowd": note_fault(
        "crowd among the training objects", "crowds are not trained on, and excused in evaluation"
    ),
    # 21: areas
    "no_area": note_fault(
        "object without an area", "that of its mask or box is taken, which decides its size class"
    ),
    # 23, 24: splits and classes
    "overlap": note_fault(
        "image of one split that is also in another",
        "remove it from one of them, or the figures of the held-out split will be too good",
    ),
    "empty_class": note_fault("class without objects", "it cannot be learnt or evaluated"),
    "no_objects": set_fault("split without a single object", "annotate its images"),
    "no_held_out_objects": note_fault(
        "split without a single object", "it has no average precision"
    ),
    # 25: Pascal VOC
    "entities": set_fault(
        "annotation file that declares entities or a document type",
        "such files can exhaust the memory: export it again without them",
    ),
    "first_pixel": note_fault(
        "files with a coordinate 0",
        "so the first pixel is taken as 0, not as 1 as in Pascal VOC; source.first_pixel says it",
    ),
    "swapped": object_fault("box whose max is below its min", "swap or remove them"),
    "fractions": note_fault("box in fractions of pixels", "they are kept"),
    "other_name": note_fault(
        "annotation that names another image file",
        "the image of the annotation's own name is taken",
    ),
    "difficult": note_fault(
        "object marked difficult",
        "like crowds, not trained on and excused in evaluation; source.difficult train uses them",
    ),
}
