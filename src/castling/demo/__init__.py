"""``castling demo``: everything on bundled images, by public functions only."""

from castling.demo.run import DemoResult, demo_recipe, headline, run_demo

__all__ = ["DemoResult", "demo_recipe", "headline", "run_demo"]
