"""The kinds of faults of annotated images: which are errors, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from castling.data.problems import EXAMPLES, Problem, Severity


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        kind: what is wrong.
        severity: whether it keeps the data from being used.
        advice: what to do, or what is done.
        of: what is counted: ``objects`` or ``images`` with such an error are left out, with a note,
            where they are few enough (``leave_out``); errors of the whole ``set`` are never passed.
        kept: the share of objects up to which an error is a note and nothing is left out.
    """

    kind: str
    severity: Severity
    advice: str
    of: Literal["objects", "images", "set"] = "set"
    kept: float = 0.0


def _object(kind: str, advice: str) -> Fault:
    return Fault(kind, "error", advice, "objects")


def _image(kind: str, advice: str) -> Fault:
    return Fault(kind, "error", advice, "images")


def _set(kind: str, advice: str) -> Fault:
    return Fault(kind, "error", advice)


def _note(kind: str, advice: str) -> Fault:
    return Fault(kind, "note", advice)


#: By the names that the readers use. The comments number the kinds as the documentation does.
FAULTS: Mapping[str, Fault] = {
    # 1, 2: the file as a whole
    "not_whole": _set(
        "annotation file that is not whole",
        "it was cut off or is of another kind: copy or export it again",
    ),
    "no_section": _set(
        "missing or malformed part of the annotation file",
        "it needs lists images, annotations and categories of objects, and all their fields",
    ),
    "not_names": _set(
        "class names that cannot be read",
        "give names as a list, or as a mapping from number to name",
    ),
    # 3 to 7: numbers and names that things are known by
    "double_image_id": _set(
        "image id used twice", "give every image its own id, or remove the second entry"
    ),
    "double_object_id": _note(
        "annotation id used twice",
        "the later ones get new ids; remove objects that are listed twice",
    ),
    "double_object": _note("object listed twice", "the second is left out"),
    "double_category": _set(
        "category id or name used twice", "give every category one id and one name of its own"
    ),
    "unknown_image": _object(
        "annotation of an image that is not listed", "list the image, or remove the annotation"
    ),
    "unknown_category": _object(
        "object of a class that is not listed", "list the class, or remove the object"
    ),
    # 8 to 12: image files
    "no_file": _image("image file missing", "put the file back, or remove its entry"),
    "unannotated": _note(
        "image without an annotation file",
        "it is left out; a file without objects makes it an image without objects",
    ),
    "unlisted": _note(
        "annotation file that no list of a split names", "it is left out; add it to a list"
    ),
    "background": _note("image without a label file", "it is taken as an image without objects"),
    "double_file": _set("image file listed twice", "merge the entries into one"),
    "no_size": _note("image without width and height", "they are read from the file"),
    "other_size": _set(
        "image whose file has another size than stated",
        "the boxes belong to the stated size: put the original file back, or scale the boxes",
    ),
    "rotated": _note(
        "image that its EXIF rotates or mirrors",
        "it is shown in the orientation that has the stated size, upright where both have; store "
        "it upright to be sure",
    ),
    # 13 to 17: boxes
    "not_numbers": _object("box that is not 4 finite numbers", "correct or remove it"),
    "no_extent": _object("box with width or height 0 or below", "correct or remove it"),
    "partly_outside": _note("box that reaches out of its image", "it is clipped"),
    "outside": _object("box wholly outside its image", "correct or remove it"),
    "corners": _set(
        "box that seems to be x1, y1, x2, y2",
        "COCO wants x, y, width, height: write width = x2 - x1 and height = y2 - y1",
    ),
    "normalised": _set(
        "box that seems to be a share of the image's sides",
        "COCO and VOC want pixels: multiply by width and height",
    ),
    "pixels": _set(
        "box that seems to be in pixels",
        "YOLO wants centre, width and height as shares in [0, 1]: divide by the image's sides",
    ),
    # 18 to 20, 22: masks
    "bad_polygon": _object(
        "polygon of fewer than 6 or an odd number of numbers", "correct or remove it"
    ),
    "bad_rle": _object(
        "run-length mask that does not fit its image", "encode it again in the image's size"
    ),
    "no_mask": _note(
        "object without a mask among others with masks", "the masks are not used; boxes are"
    ),
    "empty_mask": Fault(
        "mask without a pixel", "error", "it is kept as it is; draw it anew or remove it", kept=0.1
    ),
    "other_mask": Fault(
        "mask that disagrees with its box",
        "error",
        "both are kept as they are; correct one of them",
        kept=0.1,
    ),
    "crowd_without_mask": _note("crowd without a run-length mask", "its box stands for it"),
    "crowd": _note(
        "crowd among the training objects", "crowds are not trained on, and excused in evaluation"
    ),
    # 21: areas
    "no_area": _note(
        "object without an area", "that of its mask or box is taken, which decides its size class"
    ),
    # 23, 24: splits and classes
    "overlap": _note(
        "image of one split that is also in another",
        "remove it from one of them, or the figures of the held-out split will be too good",
    ),
    "empty_class": _note("class without objects", "it cannot be learnt or evaluated"),
    "no_objects": _set("split without a single object", "annotate its images"),
    "no_held_out_objects": _note("split without a single object", "it has no average precision"),
    # 25: Pascal VOC
    "entities": _set(
        "annotation file that declares entities or a document type",
        "such files can exhaust the memory: export it again without them",
    ),
    "first_pixel": _note(
        "files with a coordinate 0",
        "so the first pixel is taken as 0, not as 1 as in Pascal VOC; source.first_pixel says it",
    ),
    "swapped": _object("box whose max is below its min", "swap or remove them"),
    "fractions": _note("box in fractions of pixels", "they are kept"),
    "other_name": _note(
        "annotation that names another image file",
        "the image of the annotation's own name is taken",
    ),
    "difficult": _note(
        "object marked difficult",
        "like crowds, not trained on and excused in evaluation; source.difficult train uses them",
    ),
}


@dataclass
class Faults:
    """Faults as they are found: their number and the first places, by name in ``FAULTS``."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, place: str, count: int = 1) -> None:
        """Count a fault found at a place."""
        self.counts[name] = self.counts.get(name, 0) + count
        known = self.places.setdefault(name, [])
        if len(known) < EXAMPLES and place not in known:
            known.append(place)

    def add_all(self, name: str, places: Iterable[str]) -> None:
        """Count a fault found at each of several places."""
        for place in places:
            self.add(name, place)

    def together(self, other: Faults) -> Faults:
        """These and others, in that order."""
        both = Faults()
        both.take(self)
        both.take(other)
        return both

    def take(self, other: Faults) -> None:
        """Count others after these."""
        for name, count in other.counts.items():
            listed = other.places[name]
            self.add_all(name, listed)
            self.counts[name] += count - len(listed)

    def problems(self, leave_out: float, totals: Mapping[str, int]) -> tuple[Problem, ...]:
        """What to report, in the order of ``FAULTS``.

        Args:
            leave_out: the share of objects or images that may be left out for one kind of fault.
            totals: number of ``objects`` and ``images``.
        """
        found = []
        for name, fault in FAULTS.items():
            count = self.counts.get(name, 0)
            if not count:
                continue
            severity, advice = fault.severity, fault.advice
            if fault.of != "set" and count <= leave_out * totals[fault.of]:
                severity, advice = "note", f"left out; {advice}"
            elif fault.of != "set":
                share = _share(count, totals[fault.of])
                advice += f", or leave such {fault.of} out: source.leave_out {share}"
            elif fault.kept and count <= fault.kept * totals["objects"]:
                severity = "note"
            found.append(Problem(fault.kind, severity, count, tuple(self.places[name]), advice))
        return tuple(found)


def _share(count: int, total: int) -> str:
    """The least share, in two digits, that covers a count."""
    return "1" if count >= total else f"{min(1.0, count / total * 1.05 + 0.005):.2f}"
