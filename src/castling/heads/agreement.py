"""How far a file or a changed model must agree with its model, where conclusions are compared."""

from __future__ import annotations

#: Least share of detections and the like that both must have. Which of two boxes is suppressed may
#: hang on the last bit of their overlap; a wrong suppression changes many.
LEAST_AGREEMENT = 0.99

#: The same of pixels, of which each is decided by itself: only those at a border may tip over.
LEAST_PIXEL_AGREEMENT = 0.999
