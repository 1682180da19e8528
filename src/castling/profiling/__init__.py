"""Measure speed and memory, count multiply-accumulates, plan conversions, write reports."""
