"""A class for every pixel: pairs of images and masks, their faults, and their layouts."""
