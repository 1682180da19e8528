"""``castling demo``: everything on bundled images, by public functions only."""

from castling.demo.models import demo_recipe
from castling.demo.page import headline
from castling.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "demo_recipe", "headline", "run_demo"]
