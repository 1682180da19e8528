"""Surgery on models: replace attention, switch, fold, load."""

from castling.surgery.checkpoint import load_checkpoint
from castling.surgery.checkpoint_report import LoadReport
from castling.surgery.fold import FoldReport, fold_, register_fold
from castling.surgery.fold_verify import FoldError
from castling.surgery.hosts import HostAttention, Place, register_host
from castling.surgery.linearize import linearize_
from castling.surgery.linearize_report import LinearizeReport
from castling.surgery.plan import Plan, load_plan
from castling.surgery.plan_values import PlanError
from castling.surgery.selection import Attention, Where, attention_layers, convertible
from castling.surgery.switch import has_idle_biases, is_switched, strip_, switch_
from castling.surgery.switch_report import SwitchRefusedError, SwitchReport
from castling.surgery.tap import AttentionCall, tap, token_grid
from castling.surgery.transformers_load import load_transformers
from castling.surgery.visible import visible_tokens

__all__ = [
    "Attention",
    "AttentionCall",
    "FoldError",
    "FoldReport",
    "HostAttention",
    "LinearizeReport",
    "LoadReport",
    "Place",
    "Plan",
    "PlanError",
    "SwitchRefusedError",
    "SwitchReport",
    "Where",
    "attention_layers",
    "convertible",
    "fold_",
    "has_idle_biases",
    "is_switched",
    "linearize_",
    "load_checkpoint",
    "load_plan",
    "load_transformers",
    "register_fold",
    "register_host",
    "strip_",
    "switch_",
    "tap",
    "token_grid",
    "visible_tokens",
]
