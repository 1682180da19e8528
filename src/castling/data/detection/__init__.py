"""Objects in images: masks, tables of annotations, their faults, and the formats they come in."""
